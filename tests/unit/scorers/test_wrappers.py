"""Pooled and Shared: scores smoothed along the text, and one score for all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from driving import drive, make_request, to
from scoring import BACKENDS, replace, watch

from kvpolicy import (
    AttentionMass,
    CacheView,
    Column,
    CrossLayer,
    FixedRows,
    Observer,
    Pipeline,
    Policy,
    PolicyError,
    Recency,
    Scored,
    Step,
    Windowed,
    backend_by_name,
)
from kvpolicy.scorers import ExpectedAttention, Pooled, PostImageMass, Shared, WindowMass

INF = float("inf")


@dataclass(frozen=True)
class Given:
    """Scores by position: a scorer that is nothing else."""

    line: tuple[float, ...]
    dtype: str = "float64"

    def score(self, view: CacheView, step: Step, /) -> Any:
        xp = view.xp
        table = xp.asarray(self.line, dtype=getattr(xp, self.dtype))
        flat = xp.reshape(xp.where(view.valid, view.positions, xp.zeros_like(view.positions)), (-1,))
        return xp.reshape(xp.take(table, flat, axis=0), view.shape)


def pooled(line: Sequence[float], kernel: int, mode: str) -> list[float]:
    finite = [n for n, score in enumerate(line) if abs(score) != INF]
    out = list(line)
    for place, n in enumerate(finite):
        near = [line[m] for m in finite[max(place - kernel // 2, 0) : place + kernel // 2 + 1]]
        out[n] = max(near) if mode == "max" else float(sum(map(Fraction, near)) / len(near))
    return out


LINES: dict[str, list[float]] = {
    "random": np.random.default_rng(0).standard_normal(12).tolist(),
    "one dominant": [0.0] * 5 + [1e9] + [0.0] * 6,
    "infinite": [INF, 1.0, 2.0, -INF, 5.0, INF, 4.0, 3.0, -INF, -INF, 7.0, INF],
    "all infinite": [INF, -INF] * 6,
    "one finite": [INF] * 6 + [3.0] + [-INF] * 5,
}


class TestPooled:
    @pytest.mark.parametrize("mode", ["mean", "max"])
    @pytest.mark.parametrize("kernel", [1, 3, 7, 41])
    @pytest.mark.parametrize("name", LINES)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_it_is_the_formula(self, backend: str, name: str, kernel: int, mode: Any) -> None:
        line = LINES[name]
        request = make_request(batch=2, prompt=12, steps=0, padding=(0, 4))
        (said,) = watch(Pooled(Given(tuple(line)), kernel, mode), request, backend=backend)
        for b, left in enumerate(request.left):
            for h in range(2):
                np.testing.assert_allclose(said.line(b, h)[1], pooled(line[left:], kernel, mode), rtol=1e-12)

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 1e30])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_equal_scores_stay_equal_to_the_bit(self, backend: str, dtype: str, value: float) -> None:
        request = make_request(prompt=12, steps=0)
        (said,) = watch(Pooled(Given((value,) * 12, dtype)), request, backend=backend)
        assert len(set(said.scores.ravel().tolist())) == 1
        spike = (0.0,) * 6 + (value,) + (0.0,) * 5
        (said,) = watch(Pooled(Given(spike, dtype)), request, backend=backend)
        assert len(set(said.scores[0, 0, 3:9].tolist())) == 1

    def test_neighbours_are_those_left_not_those_that_were(self) -> None:
        request = make_request(prompt=12, steps=1)
        line = (*LINES["random"], 5.0)
        said = watch(Pooled(Given(line), 3), request, keep=[0, 5, 11])[-1]
        positions, scores = said.line(0, 0)
        assert positions == [0, 5, 11, 12]
        assert scores == pytest.approx(pooled([line[p] for p in positions], 3, "mean"))

    def test_a_single_row(self) -> None:
        (said,) = watch(Pooled(Given((2.5,))), make_request(prompt=1, steps=0))
        assert said.scores.tolist() == [[[2.5], [2.5]]]

    def test_narrow_scores_are_pooled_in_float32(self) -> None:
        (said,) = watch(Pooled(Given((60000.0,) * 12, "float16")), make_request(prompt=12, steps=0))
        assert said.scores.dtype == np.float32
        assert set(said.scores.ravel().tolist()) == {np.float32(np.float16(60000)).item()}

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: Pooled(AttentionMass), "scorer=AttentionMass"),  # type: ignore[arg-type]
            (lambda: Pooled(3), "scorer=3"),  # type: ignore[arg-type]
            (lambda: Pooled(AttentionMass(), 4), "kernel=4"),
            (lambda: Pooled(AttentionMass(), 0), "kernel=0"),
            (lambda: Pooled(AttentionMass(), mode="sum"), "mode='sum'"),  # type: ignore[arg-type]
            (lambda: Pooled(Shared(AttentionMass())), "Shared(Pooled(...))"),
            (lambda: Shared(AttentionMass), "scorer=AttentionMass"),  # type: ignore[arg-type]
            (lambda: Shared(None), "scorer=None"),  # type: ignore[arg-type]
        ],
    )
    def test_refusals(self, make: Callable[[], Any], says: str) -> None:
        with pytest.raises(PolicyError) as caught:
            make()
        assert says in str(caught.value)


class Quiet:
    """Observes, and does not say what."""

    def observe(self, view: CacheView, step: Step, /) -> Any:
        return {"seen": Column(view.positions)}

    def score(self, view: CacheView, step: Step, /) -> Any:
        return Recency().score(view, step)


class TestFaces:
    """A wrapper shows the faces of what it wraps, and no others."""

    @pytest.mark.parametrize("wrap", [Pooled, Shared, lambda scorer: Shared(Pooled(scorer))])
    @pytest.mark.parametrize(
        ("scorer", "columns", "window", "rotates"),
        [
            (Recency(), (), 1, False),
            (AttentionMass(reduce="mean"), ("mass", "asked"), 1, False),
            (PostImageMass(), ("after_image", "strong@0.01", "asked_after"), 1, False),
            (WindowMass(9), (), 9, False),
            (ExpectedAttention(window=5), (), 5, True),
            (Quiet(), None, 1, False),
        ],
    )
    def test_what_it_shows(self, wrap: Any, scorer: Any, columns: Any, window: int, *, rotates: bool) -> None:
        wrapped = wrap(scorer)
        assert isinstance(wrapped, Observer)
        assert isinstance(wrapped, Windowed)
        assert wrapped.columns == columns
        assert wrapped.window == window
        assert wrapped.needs_rotate is rotates
        assert isinstance(wrapped, CrossLayer) == isinstance(wrapped, Shared)

    @pytest.mark.parametrize("wrap", [Pooled, Shared])
    def test_it_observes_what_its_scorer_does(self, wrap: Any) -> None:
        request = make_request()
        plain, wrapped = (
            watch(scorer, request)[-1].view.columns for scorer in (AttentionMass(), wrap(AttentionMass()))
        )
        assert np.array_equal(plain["mass"].data, wrapped["mass"].data)
        assert set(watch(wrap(Recency()), request)[-1].view.columns) == {"count"}

    def test_a_window_reaches_through(self) -> None:
        request = make_request(prompt=12, steps=2)
        whole, parts = (watch(Pooled(WindowMass(6), 3), request, chunks=chunks) for chunks in ((12,), (4, 1, 7)))
        for a, b in zip(whole[-3:], parts[-3:], strict=True):
            np.testing.assert_allclose(a.scores, b.scores, rtol=1e-12)

    def test_wrappers_in_wrappers_ask_the_innermost_once(self) -> None:
        asked = []

        class Counted(Quiet):
            @property
            def window(self) -> int:
                asked.append(self)
                return 5

        score: Any = Counted()
        for _ in range(30):
            score = Shared(score)
        assert score.window == 5
        assert len(asked) == 1

    def test_they_print_as_they_are_made(self) -> None:
        assert repr(Shared(Pooled(WindowMass(8), 5))) == (
            "Shared(scorer=Pooled(scorer=WindowMass(window=8), kernel=5))"
        )


def scored(backend: str, lines: Sequence[Any], positions: Sequence[Any], valid: Any = None) -> list[Scored]:
    """Layers [B, H, S] of scores, with these positions."""
    layers = []
    for number, (line, given) in enumerate(zip(lines, positions, strict=True)):
        places = np.asarray(given)
        there = places >= 0 if valid is None else valid
        keys = np.zeros((*places.shape, 2))
        arrays = [to(backend, data) for data in (keys, keys, places, there)]
        view = CacheView(*arrays, {}, layer=number, num_layers=len(lines))
        layers.append(Scored(view, to(backend, np.asarray(line, dtype=np.float64))))
    return layers


@pytest.fixture
def step() -> Step:
    (said,) = watch(Recency(), make_request(prompt=2, steps=0))
    return said.step


class TestShared:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_mean_goes_to_every_layer(self, backend: str, step: Step) -> None:
        rng = np.random.default_rng(1)
        lines = rng.standard_normal((3, 2, 2, 6))
        positions = np.broadcast_to(np.arange(6), (3, 2, 2, 6))
        out = self.across(backend, lines, positions, step)
        for line in out:
            np.testing.assert_allclose(line, lines.mean(axis=0), rtol=1e-12)
            assert np.array_equal(line, out[0])

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_rows_meet_by_position(self, backend: str, step: Step) -> None:
        """Tables whose rows lie elsewhere, with holes, or of other tokens."""
        positions = [[[[0, 1, 2, 9]]], [[[9, 2, -1, 0, 1]]], [[[2, 7]]]]
        lines = [[[[1.0, 2.0, 3.0, 4.0]]], [[[40.0, 30.0, np.nan, 10.0, 20.0]]], [[[300.0, 5.0]]]]
        lines[1][0][0][2] = 1e300  # what an empty slot says is nobody's business
        out = self.across(backend, lines, positions, step)
        assert out[0].ravel().tolist() == [5.5, 11.0, 111.0, 22.0]
        assert out[1].ravel()[[0, 1, 3, 4]].tolist() == [22.0, 111.0, 5.5, 11.0]
        assert out[2].ravel().tolist() == [111.0, 5.0]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_infinities(self, backend: str, step: Step) -> None:
        lines = [[[[INF, -INF, INF, 1.0]]], [[[-INF, 2.0, INF, 3.0]]]]
        out = self.across(backend, lines, [[[[0, 1, 2, 3]]]] * 2, step)
        assert out[0].ravel().tolist() == out[1].ravel().tolist() == [INF, -INF, INF, 2.0]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_nothing_valid(self, backend: str, step: Step) -> None:
        out = self.across(backend, [[[[1.0, INF]]]], [[[[-1, -1]]]], step)
        assert not np.isnan(out[0]).any()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_scorer_that_looks_across_itself(self, backend: str, step: Step) -> None:
        lines, positions = np.arange(8.0).reshape(2, 1, 1, 4), np.broadcast_to(np.arange(4), (2, 1, 1, 4))
        ops = backend_by_name(backend)
        out = Shared(Shared(Recency())).across(scored(backend, lines, positions), replace(step, ops=ops))
        assert ops.host(out[0]).ravel().tolist() == [2.0, 3.0, 4.0, 5.0]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_all_layers_keep_the_same(self, backend: str) -> None:
        pipeline = Pipeline(schedule=FixedRows(5), score=Shared(Pooled(AttentionMass(heads="mean"), 3)))
        request = make_request(seed=3, layers=3, batch=2, prompt=12, steps=4, padding=(0, 5))
        trace = drive(Policy(prefill=pipeline, decode=pipeline), request, backend=backend)
        for done in trace.passes:
            for b in range(2):
                kept = {tuple(table.positions) for layer in done.tables for table in layer[b]}
                assert len(kept) == 1
                assert len(kept.pop()) == 5

    @staticmethod
    def across(backend: str, lines: Any, positions: Any, step: Step) -> list[Any]:
        ops = backend_by_name(backend)
        out = Shared(Recency()).across(scored(backend, lines, positions), replace(step, ops=ops))
        return [ops.host(line) for line in out]
