"""Weighers by themselves, against the formula of each kept row, on both backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import PLACES, Arr, LargestTensor, Place, Scene, leaving, make_scene, scenes

from kvpolicy import Column, FixedRows, Pipeline, Plan, PlanError, Policy, PolicyError, Recency, Scored, Selection, Step
from kvpolicy._plan import Assignment, Weights
from kvpolicy._types import CacheView
from kvpolicy.backends.torch import TorchBackend
from kvpolicy.mergers import (
    EMAGate,
    Fold,
    Gaussian,
    Mean,
    MostSimilar,
    NearestPosition,
    NextKept,
    Pivotal,
    Prominence,
    SameCluster,
    SimilaritySoftmax,
    SimilarityWeighted,
    ZeroPerturbation,
)
from kvpolicy.mergers.weighers import gaussian

CONVEX = [Mean(), Pivotal(), SimilaritySoftmax(), Gaussian(), Gaussian(0.5), ZeroPerturbation()]
ALL = [*CONVEX, SimilarityWeighted(), Gaussian(scale_values=True), Prominence()]


@dataclass(frozen=True)
class Move:
    """Row ``source`` folds into ``target`` by its place ``m``."""

    source: int
    m: int
    target: int
    similarity: float


@dataclass(frozen=True)
class Folding:
    """A scene with targets drawn for the rows that leave: distinct ones, some of them, or none."""

    scene: Scene
    into: Arr  # [B, H, S, M]
    similarity: Arr

    @property
    def assignment(self) -> Assignment:
        place = self.scene.place
        similarity = self.similarity if place.dtype == "float64" else self.similarity.astype(np.float32)
        return Assignment(place.array(self.into), place.array(similarity))

    def weighed(self, weigher: Any) -> Weights:
        """In numpy."""
        scene = self.scene
        made = weigher.weigh(scene.scored, scene.selection, self.assignment, scene.asked)
        fields = {name: getattr(made, name) for name in ("weight", "own", "key_scale", "value_scale", "folds")}
        return Weights(**{name: data if data is None else scene.host(data) for name, data in fields.items()})

    def merged(self, weigher: Any) -> tuple[Plan, CacheView]:
        """The plan in numpy, and the table that the backend makes of it, in numpy too."""
        scene = self.scene

        class Drawn:
            def assign(assigner, scored: Scored, selection: Selection, step: Step, /) -> Assignment:  # noqa: N805
                return self.assignment

        plan = Fold(Drawn(), weigher).merge(scene.scored, scene.selection, scene.asked)
        view = scene.asked.ops.compact(scene.scored.view, plan, max(1, int(scene.keep.sum(-1).max())))
        names = ("keep", "into", "weight", "self_weight", "key_scale", "value_scale")
        fields = {name: getattr(plan, name) for name in names}
        half = scene.place.dtype == "bfloat16"  # which numpy cannot hold
        return (
            Plan(**{name: data if data is None else scene.host(data) for name, data in fields.items()}),
            replace(
                view,
                keys=scene.host(view.keys.float() if half else view.keys),
                values=scene.host(view.values.float() if half else view.values),
                positions=scene.host(view.positions),
                valid=scene.host(view.valid),
                columns={name: replace(c, data=scene.host(c.data)) for name, c in view.columns.items()},
            ),
        )

    def moves(self, b: int, h: int) -> dict[int, list[Move]]:
        """For each kept row what folds into it."""
        found: dict[int, list[Move]] = {int(n): [] for n in np.flatnonzero(self.scene.keep[b, h])}
        for s, m in zip(*np.nonzero(self.into[b, h] >= 0), strict=True):
            target = int(self.into[b, h, s, m])
            found[target].append(Move(int(s), int(m), target, float(self.similarity[b, h, s, m])))
        return found


def fold(scene: Scene, *, seed: int = 0, targets: int = 1, share: float = 0.85) -> Folding:
    """``share`` of the rows that leave fold; the others are dropped."""
    rng = np.random.default_rng(seed)
    into = np.full((*scene.view.shape, targets), -1)
    for b, h in np.ndindex(*scene.view.shape[:2]):
        kept = np.flatnonzero(scene.keep[b, h])
        for s in leaving(scene, b, h):
            if len(kept) and rng.random() < share:
                reached = rng.permutation(kept)[:targets]
                into[b, h, s, rng.permutation(targets)[: len(reached)]] = reached
    similarity = np.where(into >= 0, rng.uniform(-1, 1, into.shape), 0.0)
    return Folding(scene, into, similarity.astype(np.float32).astype(np.float64))


@st.composite
def foldings(draw: st.DrawFn, **fixed: Any) -> Folding:
    return fold(draw(scenes(**fixed)), seed=draw(st.integers(0, 999)), targets=draw(st.sampled_from([1, 1, 2, 3])))


Formula = Callable[[Folding, int, int, int, list[Move]], tuple[float, list[float]]]


def compare(folding: Folding, weigher: Any, formula: Formula) -> Weights:
    """Own weights and those of all that folds, each kept row from the formula; what does not fold weighs nothing."""
    made, scene = folding.weighed(weigher), folding.scene
    tolerance = scene.place.rounding
    assert made.weight.shape == folding.into.shape
    np.testing.assert_array_equal(made.weight[folding.into < 0], 0.0)
    for b, h in np.ndindex(*scene.view.shape[:2]):
        for n, moves in folding.moves(b, h).items():
            own, weights = formula(folding, b, h, n, moves)
            got = [made.weight[b, h, move.source, move.m] for move in moves]
            np.testing.assert_allclose([made.own[b, h, n], *got], [own, *weights], rtol=tolerance, atol=tolerance)
    return made


def in_proportion(own: float, others: list[float]) -> tuple[float, list[float]]:
    total = own + sum(others)
    return own / total, [other / total for other in others]


def tokens(folding: Folding, b: int, h: int, source: int) -> float:
    """What a row brings to each of its targets."""
    shared = max(1, int(np.sum(folding.into[b, h, source] >= 0)))
    return float(folding.scene.view.columns["count"].data[b, h, source]) / shared


@given(foldings())
def test_mean(folding: Folding) -> None:
    def formula(folding: Folding, b: int, h: int, n: int, moves: list[Move]) -> tuple[float, list[float]]:
        return in_proportion(tokens(folding, b, h, n), [tokens(folding, b, h, move.source) for move in moves])

    compare(folding, Mean(), formula)


@given(foldings())
def test_pivotal(folding: Folding) -> None:
    def formula(folding: Folding, b: int, h: int, n: int, moves: list[Move]) -> tuple[float, list[float]]:
        m = len(moves)
        return (1 + m / 2) / (1 + m), [1 / (2 * (1 + m))] * m

    compare(folding, Pivotal(), formula)


@given(foldings())
def test_similarity_weighted(folding: Folding) -> None:
    def formula(folding: Folding, b: int, h: int, n: int, moves: list[Move]) -> tuple[float, list[float]]:
        return 1 / (1 + len(moves)), [move.similarity / (1 + len(moves)) for move in moves]

    compare(folding, SimilarityWeighted(), formula)


@given(foldings())
def test_similarity_softmax(folding: Folding) -> None:
    def formula(folding: Folding, b: int, h: int, n: int, moves: list[Move]) -> tuple[float, list[float]]:
        return in_proportion(math.e, [math.exp(move.similarity) for move in moves])

    compare(folding, SimilaritySoftmax(), formula)


@given(foldings(), st.sampled_from([None, None, 0.4, 5, 1e-3]), st.booleans())
def test_gaussian(folding: Folding, sigma: float | None, scale_values: bool) -> None:
    def formula(folding: Folding, b: int, h: int, n: int, moves: list[Move]) -> tuple[float, list[float]]:
        keys = folding.scene.view.keys[b, h]
        distances = [float(np.linalg.norm(keys[n] - keys[move.source])) for move in moves]
        width = sigma if sigma is not None else sum(distances) / max(1, len(distances))
        return in_proportion(1.0, [math.exp(-(d**2) / (2 * width**2)) if width > 0 else 1.0 for d in distances])

    made = compare(folding, Gaussian(sigma, scale_values), formula)
    if not scale_values:
        assert made.value_scale is None
        return
    for b, h in np.ndindex(*folding.scene.view.shape[:2]):
        for n, moves in folding.moves(b, h).items():
            assert made.value_scale[b, h, n] == 1 + len(moves)


def test_gaussian_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in PLACES:
        folding = fold(make_scene(rows=11, quota=3, place=place), targets=2)
        whole = folding.weighed(Gaussian())
        with monkeypatch.context() as patch:
            patch.setattr(gaussian, "_CHUNK", 4)
            pieces = folding.weighed(Gaussian())
        np.testing.assert_array_equal(pieces.weight, whole.weight)
        np.testing.assert_array_equal(pieces.own, whole.own)


class TestProminence:
    @given(foldings(), st.sampled_from([0, 1, 77]))
    def test_the_draw(self, folding: Folding, seed: int) -> None:
        scene, made = folding.scene, folding.weighed(Prominence(seed))
        plan, _ = folding.merged(Prominence(seed))
        np.testing.assert_array_equal(made.own, 1.0)
        shape = folding.into.shape
        for b, h in np.ndindex(*shape[:2]):
            kept = [scene.scores[b, h, n] for n in np.flatnonzero(scene.keep[b, h])]
            most = max((score for score in kept if math.isfinite(score)), default=0.0)
            for s in range(shape[2]):
                share = scene.scores[b, h, s] / most if most > 0 else 0.0
                token = int(scene.view.positions[b, h, s] - scene.step.padding[b])
                goes = drawn(seed, scene.view.layer, token) < min(max(share, 0.0), 1.0)
                reached = folding.into[b, h, s] >= 0
                expected = np.where(reached & goes, 1 / shape[3], 0.0)
                np.testing.assert_allclose(made.weight[b, h, s], expected, rtol=1e-6)
                np.testing.assert_array_equal(plan.into[b, h, s], np.where(expected > 0, folding.into[b, h, s], -1))

    def test_rows_that_matter_most_always_go_and_worthless_ones_never(self) -> None:
        for scores, all_go in [("equal", True), ("worthless", False)]:
            folding = fold(make_scene(rows=30, quota=4, scores=scores))
            plan, _ = folding.merged(Prominence())
            np.testing.assert_array_equal(plan.into, folding.into if all_go else np.full_like(folding.into, -1))

    def test_without_a_positive_score_kept_nothing_goes(self) -> None:
        scene = make_scene(rows=30, quota=4)
        folding = fold(replace(scene, scores=np.where(scene.keep, -1.0, 1.0)))
        assert np.all(folding.merged(Prominence())[0].into == -1)

    def test_about_as_many_go_as_are_likely(self) -> None:
        scene = make_scene(rows=400, quota=1, batch=1, heads=1)
        scores = np.where(scene.keep, 1.0, 0.3)
        folding = fold(replace(scene, scores=scores))
        goes = [float(np.sum(folding.merged(Prominence(seed))[0].into >= 0)) for seed in range(10)]
        assert np.mean(goes) / np.sum(folding.into >= 0) == pytest.approx(0.3, abs=0.03)
        assert len(set(goes)) > 1

    def test_keys_stay_and_values_are_added(self) -> None:
        scene = make_scene(rows=8, quota=4, scores="equal", batch=1, heads=1)
        plan = Fold(NextKept(2), Prominence(), keys=False).merge(scene.scored, scene.selection, scene.asked)
        out = scene.asked.ops.compact(scene.view, plan, 4)
        kept = sorted(np.flatnonzero(scene.keep[0, 0]), key=lambda n: scene.view.positions[0, 0, n])
        np.testing.assert_array_equal(out.keys[0, 0], scene.view.keys[0, 0, kept])
        values = scene.view.values[0, 0]
        expected = values.copy()
        for s in leaving(scene, 0, 0):
            after = [n for n in kept if scene.view.positions[0, 0, n] > scene.view.positions[0, 0, s]]
            for n in after[:2]:
                expected[n] = expected[n] + values[s] / 2
        np.testing.assert_allclose(out.values[0, 0], expected[kept], atol=1e-12)


def drawn(seed: int, layer: int, token: int) -> float:
    """The hash that decides, in Python's integers."""
    x = (seed * 2654435761 + layer * 40503 + token * 69069 + 12345) % 2**31
    for _ in range(3):
        x ^= x >> 15
        x = x * 739982445 % 2**31
        x ^= x >> 12
    return x / 2**31


class TestZeroPerturbation:
    @given(foldings(), st.sampled_from([1.0, 1.05, 2.0, 1e6]))
    def test_the_formula(self, folding: Folding, limit: float) -> None:
        scene = folding.scene
        logits = logits_of(scene)

        def formula(folding: Folding, b: int, h: int, n: int, moves: list[Move]) -> tuple[float, list[float]]:
            rows = [n, *(move.source for move in moves)]
            top = max(logits[b, h, rows])
            paid = [tokens(folding, b, h, s) * math.exp(logits[b, h, s] - top) for s in rows]
            return in_proportion(paid[0], paid[1:])

        made = compare(folding, ZeroPerturbation(limit), formula)
        for b, h in np.ndindex(*scene.view.shape[:2]):
            for n, moves in folding.moves(b, h).items():
                scale = made.key_scale[b, h, n]
                assert 1 / limit <= scale <= limit
                rows = [n, *(move.source for move in moves)]
                counts = np.array([tokens(folding, b, h, s) for s in rows])
                top = logits[b, h, rows].max()
                paid = counts * np.exp(logits[b, h, rows] - top)
                due = top + math.log(paid.sum() / counts.sum())
                got = float(paid @ logits[b, h, rows]) / paid.sum()
                factor = due / got if got else math.inf
                if not moves:
                    assert scale == 1
                elif abs(got) > 1e-2 and min(abs(factor - limit), abs(factor - 1 / limit)) > 1e-3:
                    expected = factor if 1 / limit <= factor <= limit else 1.0
                    assert scale == pytest.approx(expected, rel=1e-3 if scene.place.rounding > 1e-9 else 1e-9)

    @given(
        scenes(places=(Place("numpy", "float64"), Place("torch", "float64")), rows=8, groups=1, keys="random"),
        st.integers(0, 999),
        st.sampled_from([1, 2]),
    )
    def test_the_latest_query_reads_the_same(self, scene: Scene, seed: int, targets: int) -> None:
        """Wherever all the scales of a head are inside the limit; also with several rows into one, and counts."""
        folding = fold(scene, seed=seed, targets=targets, share=1.0)
        plan, after = folding.merged(ZeroPerturbation(1e9))
        before, now = read(scene, scene.view), read(scene, after)
        for b, h in np.ndindex(*scene.view.shape[:2]):
            merged = [n for n, moves in folding.moves(b, h).items() if moves]
            if np.any(scene.keep[b, h]) and np.all(plan.key_scale[b, h, merged] != 1):
                np.testing.assert_allclose(now[b, h], before[b, h], rtol=0, atol=1e-10)

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    @pytest.mark.parametrize("targets", [1, 2])
    def test_it_reads_the_same_within_the_default_limit(self, backend: str, targets: int) -> None:
        scene = make_scene(seed=4, place=Place(backend, "float64"), rows=12, quota=3, counts=True, empty=2)
        # Keys near one direction, and queries too: all logits lie near each other, and so every scale near 1.
        view = replace(scene.view, keys=0.2 * scene.view.keys + 1)
        scene = replace(scene, view=view, step=replace(scene.step, queries=0.1 * scene.step.queries + 1))
        folding = fold(scene, targets=targets, share=1.0)
        plan, after = folding.merged(ZeroPerturbation())
        several = 0
        for b, h in np.ndindex(*view.shape[:2]):
            for n, moves in folding.moves(b, h).items():
                assert (plan.key_scale[b, h, n] != 1) == bool(moves)
                several += len(moves) > 1
        assert several > 4
        np.testing.assert_allclose(read(scene, after), read(scene, view), rtol=0, atol=1e-10)
        means, unscaled = folding.merged(ZeroPerturbation(1.0))
        np.testing.assert_array_equal(means.key_scale, 1.0)
        assert np.abs(read(scene, unscaled) - read(scene, view)).max() > 1e-6

    @pytest.mark.parametrize("place", PLACES, ids=repr)
    def test_logits_beyond_any_exponential(self, place: Place) -> None:
        scene = make_scene(rows=10, quota=3, place=place)
        step = replace(scene.step, queries=1e4 * np.sign(scene.step.queries))
        folding = fold(replace(scene, step=step))
        plan, _ = folding.merged(ZeroPerturbation())
        assert np.all(np.isfinite(plan.weight))
        assert np.all(np.isfinite(plan.key_scale))
        sums = total_weight(folding, plan)
        np.testing.assert_allclose(sums[scene.keep], 1.0, atol=1e-5)

    def test_the_latest_valid_query_of_each_row_counts(self) -> None:
        scene = make_scene(rows=6, quota=2)
        step = replace(scene.step, query_valid=np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=bool))
        queries = step.queries.copy()
        queries[0, :, 4:] = 99.0
        plain, odd = (
            fold(replace(scene, step=s)).weighed(ZeroPerturbation()) for s in (step, replace(step, queries=queries))
        )
        np.testing.assert_array_equal(plain.weight, odd.weight)

    def test_it_needs_counts_in_the_attention(self) -> None:
        pipeline = Pipeline(schedule=FixedRows(3), score=Recency(), merge=Fold(MostSimilar(0.8), ZeroPerturbation()))
        with pytest.raises(PolicyError, match="count_bias=True"):
            Policy(prefill=pipeline)
        Policy(prefill=pipeline, count_bias=True)


def logits_of(scene: Scene) -> Arr:
    """[B, H, S], of the mean over the group of the latest query."""
    batch, heads, _ = scene.view.shape
    queries = scene.step.queries[:, :, -1].reshape(batch, heads, -1, scene.view.keys.shape[-1]).mean(axis=2)
    return np.asarray(scene.step.scale * np.einsum("bhd,bhsd->bhs", queries, scene.view.keys))


def read(scene: Scene, view: CacheView) -> Arr:
    """[B, H, Dv], what the latest query reads with counts in the attention."""
    logits = logits_of(replace(scene, view=view))
    count = view.columns["count"].data
    weight = np.where(view.valid, count, 0) * np.exp(logits - logits.max(axis=-1, keepdims=True))
    weight = weight / np.maximum(weight.sum(axis=-1, keepdims=True), 1e-300)
    return np.asarray(np.einsum("bhs,bhsd->bhd", weight, view.values))


def total_weight(folding: Folding, plan: Plan) -> Arr:
    """[B, H, S], own weights and those of all that folds."""
    total = np.array(plan.self_weight)
    for b, h, s, m in np.argwhere(plan.into >= 0):
        total[b, h, plan.into[b, h, s, m]] += plan.weight[b, h, s, m]
    return total


class TestAll:
    @given(foldings(), st.sampled_from(CONVEX))
    def test_averages_are_convex(self, folding: Folding, weigher: Any) -> None:
        plan, _ = folding.merged(weigher)
        assert np.all(plan.weight >= 0)
        assert np.all(plan.self_weight >= 0)
        assert plan.value_scale is None
        np.testing.assert_allclose(total_weight(folding, plan)[folding.scene.keep], 1.0, atol=1e-5)

    @given(foldings(counts=True), st.sampled_from([w for w in ALL if not isinstance(w, Prominence)]))
    def test_a_row_counts_what_folded_into_it(self, folding: Folding, weigher: Any) -> None:
        _, view = folding.merged(weigher)
        scene = folding.scene
        left = scene.keep | np.any(folding.into >= 0, axis=-1)
        before = np.sum(scene.view.columns["count"].data * left, axis=-1)
        np.testing.assert_allclose(np.sum(view.columns["count"].data, axis=-1), before, rtol=1e-6)

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_a_third_of_a_column_is_a_third_in_its_own_dtype(self, backend: str) -> None:
        scene = make_scene(rows=9, quota=4, place=Place(backend, "float64"))
        mass = np.where(scene.view.valid, np.random.default_rng(1).random(scene.view.shape), 0.0)
        view = scene.view.with_columns({"mass": Column(mass, "sum")})
        _, after = fold(replace(scene, view=view), targets=3, share=1.0).merged(Mean())
        np.testing.assert_allclose(after.columns["mass"].data.sum(axis=-1), mass.sum(axis=-1), rtol=1e-14)

    @given(foldings(), st.sampled_from(ALL))
    def test_a_row_that_nothing_folds_into_keeps_its_bits(self, folding: Folding, weigher: Any) -> None:
        plan, view = folding.merged(weigher)
        scene = folding.scene
        for b, h in np.ndindex(*scene.view.shape[:2]):
            kept = sorted(np.flatnonzero(scene.keep[b, h]), key=lambda n: scene.view.positions[b, h, n])
            assert view.positions[b, h, : len(kept)].tolist() == scene.view.positions[b, h, kept].tolist()
            for slot, n in enumerate(kept):
                if n not in plan.into[b, h]:
                    assert plan.self_weight[b, h, n] == 1
                    np.testing.assert_array_equal(view.keys[b, h, slot], scene.view.keys[b, h, n])
                    np.testing.assert_array_equal(view.values[b, h, slot], scene.view.values[b, h, n])

    @given(foldings(), st.sampled_from(ALL))
    def test_the_table_is_what_the_weights_say(self, folding: Folding, weigher: Any) -> None:
        plan, view = folding.merged(weigher)
        scene = folding.scene
        tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(scene.place.dtype, 1e-4)
        for b, h in np.ndindex(*scene.view.shape[:2]):
            kept = sorted(np.flatnonzero(scene.keep[b, h]), key=lambda n: scene.view.positions[b, h, n])
            for slot, n in enumerate(kept):
                for name, scale in (("keys", plan.key_scale), ("values", plan.value_scale)):
                    rows = getattr(scene.view, name)[b, h]
                    own = plan.self_weight[b, h, n] * rows[n]
                    other = [plan.weight[b, h, s, m] * rows[s] for s, m in np.argwhere(plan.into[b, h] == n)]
                    due = (1.0 if scale is None else scale[b, h, n]) * (own + sum(other))
                    room = tolerance * max(1.0, float(np.abs(rows).max()))
                    np.testing.assert_allclose(getattr(view, name)[b, h, slot], due, rtol=tolerance, atol=room)

    @given(foldings(), st.sampled_from(ALL))
    def test_the_engine_has_no_objection(self, folding: Folding, weigher: Any) -> None:
        """Weights are of the dtype that sums need, and finite whatever the scores are."""
        scene = folding.scene
        made = weigher.weigh(scene.scored, scene.selection, folding.assignment, scene.asked)
        wide = "float64" if scene.place.dtype == "float64" else "float32"
        for data in (made.weight, made.own, made.key_scale, made.value_scale):
            if data is not None:
                assert str(data.dtype).removeprefix("torch.") == wide
                assert np.all(np.isfinite(scene.host(data)))


PAIRS: list[Any] = [
    *(Fold(MostSimilar(), weigher) for weigher in ALL),
    Fold(EMAGate(MostSimilar()), SimilaritySoftmax()),
    Fold(NextKept(4), Prominence(), keys=False),
    Fold(NearestPosition(), Gaussian()),
]


@pytest.mark.parametrize("merger", PAIRS, ids=repr)
def test_memory_is_linear_in_the_rows(merger: Fold) -> None:
    """At 4000 rows, of which 1000 stay, dropped times kept would be 100 times as much."""
    scene = make_scene(batch=1, heads=1, rows=4000, quota=1000, dim=8, place=Place("torch", "float32"))
    scored, asked = scene.scored, replace(scene.asked, ops=TorchBackend(chunk_elements=4096))
    with LargestTensor() as largest:
        plan = merger.merge(scored, scene.selection, asked)
    assert bool((plan.into >= 0).any())
    assert largest.elements <= scene.view.keys.size


class TestRefusals:
    @pytest.mark.parametrize("weigher", [SimilarityWeighted(), SimilaritySoftmax()], ids=repr)
    def test_no_similarity(self, weigher: Any) -> None:
        for assigner in (NearestPosition(), SameCluster(), NextKept()):
            with pytest.raises(PolicyError, match=rf"{type(weigher).__name__}.*{type(assigner).__name__}.*MostSimilar"):
                Fold(assigner, weigher)
        Fold(MostSimilar(), weigher)

        class Silent:
            def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
                return NearestPosition().assign(scored, selection, step)

        scene = make_scene()
        with pytest.raises(PlanError, match=rf"{type(weigher).__name__}.*Silent"):
            Fold(Silent(), weigher).merge(scene.scored, scene.selection, scene.asked)

    def test_a_weigher_that_needs_clusters(self) -> None:
        class Sizes:
            needs_groups = True

            def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
                return Mean().weigh(scored, selection, assignment, step)

        with pytest.raises(PolicyError, match="Clusters"):
            Pipeline(schedule=FixedRows(3), score=Recency(), merge=Fold(NearestPosition(), Sizes()))

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: Gaussian(0), "sigma"),
            (lambda: Gaussian(-1.0), "sigma"),
            (lambda: Gaussian(float("inf")), "sigma"),
            (lambda: Gaussian(scale_values="no"), "scale_values"),  # type: ignore[arg-type]
            (lambda: Prominence(-1), "seed"),
            (lambda: Prominence(0.5), "seed"),  # type: ignore[arg-type]
            (lambda: ZeroPerturbation(0.5), "limit"),
            (lambda: ZeroPerturbation(float("nan")), "limit"),
        ],
    )
    def test_arguments(self, make: Callable[[], Any], says: str) -> None:
        with pytest.raises(PolicyError, match=says):
            make()
