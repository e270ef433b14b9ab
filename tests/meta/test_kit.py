"""The parts of the conformance kit: examples, what is done to them, strategies, order, pytest parameters, command."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import kvpolicy as kv
from kvpolicy.backends.numpy import NumpyBackend
from kvpolicy.cli import app
from kvpolicy.testing import (
    PROFILES,
    Check,
    ConformanceError,
    Law,
    Place,
    Request,
    Table,
    checks,
    checks_of,
    parametrize_with_checks,
    strategies,
)
from kvpolicy.testing._law import law
from kvpolicy.testing._order import OrderedCheck, in_order
from kvpolicy.testing._outcome import BrokenLawError, compare, describe, fail
from kvpolicy.testing._subject import kind_of, subject_of
from kvpolicy.testing.requests import Stream

pytest_plugins = ["pytester"]

STAGES = '''
from dataclasses import dataclass

import numpy as np

from kvpolicy.testing import parametrize_with_checks


@dataclass(frozen=True)
class Fine:
    rows: int = 3

    def budget(self, step):
        return self.rows


@dataclass(frozen=True)
class OfLength:
    """Counts padding."""

    def budget(self, step):
        return max(1, step.length // 2)


@dataclass(frozen=True)
class Zero:
    def budget(self, step):
        return 0


fine = Fine(2)
number = 3


def make(rows=4):
    return Fine(rows)
'''


TEST = "\ndef test_laws(component, check):\n    check(component)\n"
FEW = 8  # examples


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same few examples every time."""
    monkeypatch.setenv("CI", "1")
    monkeypatch.setitem(PROFILES, "ci", FEW)  # type: ignore[arg-type]


class OfLength:
    """A schedule that counts padding."""

    def budget(self, step: Any) -> int:
        return max(1, step.length // 2)

    def __repr__(self) -> str:
        return "OfLength()"


# Examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Table(layers=0), "Table(layers=0): layers must be an integer >= 1."),
        (lambda: Table(heads=1.0), "Table(heads=1.0): heads must be an integer >= 1."),
        (lambda: Table(vectors="long"), "Table(vectors='long'): vectors must be one of 'normal', 'axes', 'zeros',"),
        (lambda: Table(scores="high"), "Table(scores='high'): scores must be one of 'normal', 'ties',"),
        (lambda: Table(dtype="int8"), "Table(dtype='int8'): dtype must be one of 'float64',"),
        (lambda: Table(phase="turn"), "Table(phase='turn'): phase must be one of 'prefill', 'decode'."),
        (lambda: Table(tokens=3, now=5), "Table(now=5): only 3 tokens have passed. Hint: tokens=5."),
        (lambda: Table(dim=3), "Table(dim=3): dim must be even. Hint: 4."),
        (lambda: Table(padding=(1, 1)), "Table(padding=(1, 1)): one number for each of 1 batch rows, less than the 3"),
        (
            lambda: Table(padding=(3,)),
            "Table(padding=(3,)): one number for each of 1 batch rows, less than the 3 token",
        ),
        (lambda: Table(padding=(-1,)), "Table(padding=(-1,)): one number for each of 1 batch rows"),
        (lambda: Request(prompt=0), "Request(prompt=0): prompt must be an integer >= 1."),
        (lambda: Request(steps=-1), "Request(steps=-1): steps must be an integer >= 0."),
        (lambda: Request(turn=True), "Request(turn=True): turn must be an integer >= 0."),
        (lambda: Request(dtype="int8"), "Request(dtype='int8'): dtype must be one of 'float64',"),
        (lambda: Request(dim=5), "Request(dim=5): dim must be even. Hint: 6."),
        (lambda: Request(padding=(3,)), "Request(padding=(3,)): one number for each of 1 batch rows, less than the 3"),
    ],
)
def test_an_example_out_of_range_says_what_is_allowed(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(kv.PolicyError, match=re.escape(said)):
        make()


@given(strategies.tables() | strategies.requests())
def test_examples_print_as_their_constructor_call(example: Table | Request) -> None:
    assert eval(repr(example)) == example
    assert hash(eval(repr(example))) == hash(example)


@given(strategies.tables() | strategies.requests())
def test_examples_are_the_same_every_time(example: Table | Request) -> None:
    one, other = example.build(), example.build()
    assert np.array_equal(one.queries, other.queries)
    if isinstance(example, Table):
        assert [layer.keys.tobytes() for layer in one.layers] == [layer.keys.tobytes() for layer in other.layers]


@given(strategies.tables())
def test_tables_are_what_an_engine_could_hold(table: Table) -> None:
    scene = table.build()
    for layer in scene.layers:
        places = np.where(layer.valid, layer.positions, -1)
        for b, h in np.ndindex(*places.shape[:2]):
            there = places[b, h][places[b, h] >= 0]
            assert len(set(there.tolist())) == len(there)
            assert table.tokens - 1 in there
            assert np.all((there >= scene.padding[b]) & (there < table.tokens))
        assert np.array_equal(layer.columns["count"].data > 0, layer.valid)
        assert not np.any(layer.keep & ~layer.valid)
        if not table.shuffled:
            assert np.all(layer.positions[..., -table.now :] == np.arange(table.tokens)[-table.now :])
    assert np.all(scene.budget >= 1)


def test_what_kinds_of_numbers_are() -> None:
    size = {"tokens": 8, "now": 8, "dim": 4}
    layer = {kind: Table(vectors=kind, **size).build().layers[0] for kind in ("axes", "zeros", "equal", "dominant")}
    assert np.all(np.abs(layer["axes"].keys).sum(-1) == 1)
    assert 0 < (layer["zeros"].keys == 0).all(-1).sum() < 8
    assert np.all(layer["equal"].keys == layer["equal"].keys[:, :, :1])
    assert sorted(np.abs(layer["dominant"].keys).sum(-1).ravel())[-2:] == [0, 400]
    kinds = ("ties", "equal", "infinite", "worthless", "denormal", "dominant")
    scores = {kind: Table(scores=kind, **size).build().layers[0].scores for kind in kinds}
    assert set(scores["ties"].ravel()) <= {-1, 0, 1}
    assert len(set(scores["equal"].ravel())) == 1
    assert {np.inf, -np.inf} < set(scores["infinite"].ravel())
    assert np.all(scores["worthless"] == -np.inf)
    assert 0 < scores["denormal"].max() < 1e-300
    assert sorted(scores["dominant"].ravel())[-2:] == [0, 1e6]


# What may be done to them ------------------------------------------------------------------------------------------


SCENE = Table(batch=2, heads=2, groups=2, tokens=4, now=4, padding=(0, 2), image=(0, 1)).build()
LATER = Table(batch=2, heads=2, tokens=5, padding=(0, 2), empty=1, merged=True).build()  # one token of five is new


def rows_of(layer: Any, b: int, h: int, padding: int) -> Mapping[int, tuple[float, ...]]:
    """What each token of a head holds."""
    return {
        int(layer.positions[b, h, n]) - padding: (
            *layer.keys[b, h, n].tolist(),
            *layer.values[b, h, n].tolist(),
            *(float(column.data[b, h, n]) for column in layer.columns.values()),
            float(layer.scores[b, h, n]),
            bool(layer.keep[b, h, n]),
        )
        for n in np.flatnonzero(layer.valid[b, h])
    }


class TestScene:
    @pytest.mark.parametrize("scene", [SCENE, LATER], ids=["prompt", "later"])
    def test_alone_is_a_batch_row_without_its_padding(self, scene: Any) -> None:
        one = scene.alone(1)
        assert (one.tokens, one.padding.tolist(), one.seen.tolist()) == (scene.tokens - 2, [0], [scene.tokens - 2])
        assert one.now == min(scene.now, one.tokens)
        assert np.array_equal(one.queries, scene.queries[:, 1:, :, 2:])
        layer = one.layers[0]
        assert layer.positions.max() == one.tokens - 1
        assert np.all(layer.valid | (layer.positions == -1))
        for h in range(2):
            assert rows_of(layer, 0, h, 0) == rows_of(scene.layers[0], 1, h, 2)

    @pytest.mark.parametrize("scene", [SCENE, LATER], ids=["prompt", "later"])
    def test_padded_has_more_garbage_on_the_left(self, scene: Any) -> None:
        more = scene.padded(3, seed=1)
        assert more.padding.tolist() == [3, 5]
        assert (more.tokens, more.seen.tolist()) == (scene.tokens + 3, scene.seen.tolist())
        assert more.now == scene.now + (3 if scene is SCENE else 0)  # a whole prompt gets longer
        assert np.array_equal(more.queries[..., 3:, :], scene.queries)
        before, after = scene.layers[0], more.layers[0]
        assert after.valid.sum() == before.valid.sum()
        assert np.abs(after.keys[~after.valid]).min() >= 50
        assert not after.columns["count"].data[~after.valid].any()
        for b, h in np.ndindex(2, 2):
            assert rows_of(after, b, h, more.padding[b]) == rows_of(before, b, h, scene.padding[b])

    def test_heads_bring_their_query_heads(self) -> None:
        other = SCENE.with_heads([1, 0])
        assert np.array_equal(other.layers[0].keys, SCENE.layers[0].keys[:, ::-1])
        assert np.array_equal(other.layers[0].quota, SCENE.layers[0].quota[:, ::-1])
        assert np.array_equal(other.queries, SCENE.queries[:, :, [2, 3, 0, 1]])
        assert np.array_equal(SCENE.with_heads([1]).queries, SCENE.queries[:, :, 2:])

    def test_the_budget_is_no_matter_of_heads(self) -> None:
        scene = Table(heads=3, tokens=6, now=6, quota=None, seed=3).build()
        assert scene.with_heads([2, 0, 1]).budget.tolist() == scene.budget.tolist()

    def test_other_slots_hold_the_same_rows(self) -> None:
        moved = [LATER.reslotted(seed).layers[0] for seed in range(5)]
        before = LATER.layers[0]
        assert any(not np.array_equal(after.positions, before.positions) for after in moved)
        for after in moved:
            assert np.array_equal(after.positions[..., -1], before.positions[..., -1])  # the row of this pass stays
            for b, h in np.ndindex(2, 2):
                assert rows_of(after, b, h, LATER.padding[b]) == rows_of(before, b, h, LATER.padding[b])

    def test_rows_of_a_prompt_stay_and_those_of_a_shuffled_table_do_not(self) -> None:
        assert np.array_equal(SCENE.reslotted(1).layers[0].keys, SCENE.layers[0].keys)
        shuffled = Table(tokens=6, shuffled=True).build()
        last = {int(np.argmax(shuffled.reslotted(seed).layers[0].positions)) for seed in range(10)}
        assert len(last) > 1

    def test_columns_that_are_needed_go_by_token(self) -> None:
        known = LATER.needing(["mass", "count"])
        assert set(known.layers[0].columns) == {"count", "segment", "mass"}
        assert known.layers[0].columns["count"] is LATER.layers[0].columns["count"]
        other = LATER.reslotted(3).needing(["mass"])
        for b, h in np.ndindex(2, 2):
            padding = LATER.padding[b]
            assert rows_of(other.layers[0], b, h, padding) == rows_of(known.layers[0], b, h, padding)

    def test_it_is_handed_over_as_a_pass_of_the_engine(self) -> None:
        staged = LATER.on(NumpyBackend())
        step, view = staged.steps[0], staged.scored[0].view
        assert (view.layer, view.num_layers, view.shape) == (0, 1, LATER.layers[0].valid.shape)
        assert step.seen.tolist() == [5, 3]
        assert step.padding.tolist() == [0, 2]
        assert step.held[0].tolist() == LATER.layers[0].valid.sum(-1).tolist()
        assert step.query_positions.tolist() == [[4], [4]]
        assert step.latest(2).query_positions.tolist() == [[3, 4], [3, 4]]
        assert step.whole_pass


STREAM = Request(batch=2, heads=2, groups=2, prompt=4, steps=1, turn=2, padding=(0, 2), image=(0, 1)).build()


class TestStream:
    def test_its_passes(self) -> None:
        assert STREAM.passes == (4, 1, 2, 1)
        assert STREAM.tokens == 8
        assert STREAM.segment.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]]

    def test_alone(self) -> None:
        one = STREAM.alone(1)
        assert (one.passes, one.prompt, one.padding.tolist()) == ((2, 1, 2, 1), 2, [0])
        assert np.array_equal(one.keys, STREAM.keys[:, 1:, :, 2:])
        assert one.segment.tolist() == [[1, 0, 0, 0, 0, 0]]

    def test_padded(self) -> None:
        more = STREAM.padded(3, seed=1)
        assert (more.passes, more.prompt, more.padding.tolist()) == ((7, 1, 2, 1), 7, [3, 5])
        assert np.array_equal(more.values[..., 3:, :], STREAM.values)
        assert np.abs(more.keys[..., :3, :]).max() > 5

    def test_heads(self) -> None:
        other = STREAM.with_heads([1, 0])
        assert np.array_equal(other.values, STREAM.values[:, :, ::-1])
        assert np.array_equal(other.queries, STREAM.queries[:, :, [2, 3, 0, 1]])

    @pytest.mark.parametrize(("size", "passes"), [(1, (1, 1, 1, 1)), (3, (3, 1)), (4, (4,)), (9, (4,))])
    def test_chunks(self, size: int, passes: tuple[int, ...]) -> None:
        cut: Stream = STREAM.chunked(size)
        assert cut.passes == (*passes, 1, 2, 1)
        assert cut.prompt == 4


# Strategies --------------------------------------------------------------------------------------------------------


@cache
def drawn(name: str, number: int = 400) -> list[Any]:
    """The same examples every time."""
    found: list[Any] = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(getattr(strategies, name)())
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


class TestStrategies:
    @pytest.mark.parametrize(
        ("edge", "reached"),
        [
            ("one token", lambda t: t.tokens == 1),
            ("one of everything", lambda t: {t.layers, t.batch, t.heads, t.groups, t.value_dim} == {1}),
            ("shared keys", lambda t: t.heads > 1 and t.groups > 1),
            ("padding", lambda t: len(set(t.padding)) > 1),
            ("all padding but one", lambda t: t.tokens > 2 and t.tokens - 1 in t.padding),
            ("a prompt", lambda t: t.now == t.tokens > 3),
            ("a turn", lambda t: 1 < t.now < t.tokens and t.phase == "prefill"),
            ("decoding", lambda t: t.phase == "decode" and t.evicted > 0),
            ("other slots", lambda t: t.shuffled),
            ("empty slots", lambda t: t.empty > 1),
            ("merged rows", lambda t: t.merged),
            ("an image", lambda t: 0 < t.image[0] < t.image[1] < t.tokens),
            ("no rows", lambda t: t.quota == 0),
            ("a row too many", lambda t: t.quota == t.tokens + 1),
            ("just enough", lambda t: t.quota == t.tokens > 1),
            ("another quota for each", lambda t: t.quota is None),
            ("fewer than there are", lambda t: t.evicted == 0 and 1 < (t.quota or 0) < t.tokens - max(t.left)),
        ],
    )
    def test_tables_reach_every_edge(self, edge: str, reached: Callable[[Table], bool]) -> None:
        assert any(map(reached, drawn("tables"))), edge

    @pytest.mark.parametrize("name", ["vectors", "scores"])
    def test_tables_have_all_kinds_of_numbers(self, name: str) -> None:
        from kvpolicy.testing.tables import SCORES, VECTORS

        kinds = Counter(getattr(table, name) for table in drawn("tables"))
        assert set(kinds) == set({"vectors": VECTORS, "scores": SCORES}[name])

    @pytest.mark.parametrize(
        ("edge", "reached"),
        [
            ("one token", lambda r: r.prompt == 1),
            ("one of everything", lambda r: {r.layers, r.batch, r.heads, r.groups, r.value_dim} == {1}),
            ("shared keys", lambda r: r.heads > 1 and r.groups > 1),
            ("padding", lambda r: len(set(r.padding)) > 1),
            ("no decoding", lambda r: r.steps == 0),
            ("decoding", lambda r: r.steps == 3),
            ("a turn", lambda r: r.turn > 0 and r.steps > 0),
            ("an image", lambda r: 0 < r.image[0] < r.image[1]),
        ],
    )
    def test_requests_reach_every_edge(self, edge: str, reached: Callable[[Request], bool]) -> None:
        assert any(map(reached, drawn("requests"))), edge

    @given(st.data(), st.integers(2, 3))
    def test_sizes_are_kept(self, data: st.DataObject, heads: int) -> None:
        table = data.draw(strategies.tables(least={"batch": 2, "heads": heads}, tokens=4, dim=2))
        assert (table.tokens, table.dim) == (4, 2)
        assert table.batch >= 2
        assert table.heads >= heads
        request = data.draw(strategies.requests(least={"steps": 1}, heads=heads))
        assert request.heads == heads
        assert request.steps >= 1

    @given(strategies.dtypes(), strategies.segments(5), strategies.budgets(5))
    def test_parts(self, dtype: str, image: tuple[int, int], budget: int | None) -> None:
        assert dtype in ("float64", "float32", "float16", "bfloat16")
        assert 0 <= image[0] <= image[1] <= 5
        assert budget is None or 0 <= budget <= 6

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_arrays_for_tests_of_a_users_own(self, backend: str) -> None:
        @settings(max_examples=5, database=None, derandomize=True, phases=(Phase.generate,))
        @given(strategies.steps(backend=backend, heads=2), strategies.caches(backend=backend, tokens=3))
        def look(given_: tuple[kv.Scored, kv.Step], view: kv.CacheView) -> None:
            scored, step = given_
            assert step.ops.name == backend
            assert tuple(scored.scores.shape) == scored.view.shape
            assert scored.view.shape[1] == 2
            assert type(view.keys).__module__ == backend

        look()


# Comparing and naming ----------------------------------------------------------------------------------------------


class TestOutcomes:
    def test_places_in_words(self) -> None:
        assert describe(Place(2, 0, 1, 0, 3)) == "pass 2, layer 0, batch row 1, head 0, token 3"
        assert describe(Place(batch_row=1)) == "batch row 1"
        assert describe(Place()) == ""

    @pytest.mark.parametrize(
        ("got", "due", "said"),
        [
            ({0: {"a": 1.0}}, {}, "layer 0: there is a 1; in that there is nothing."),
            ({}, {0: {"a": 1.0}}, "layer 0: there is nothing; in that there is a 1."),
            ({0: {"a": 1.0}}, {0: {"a": 2.0}}, "layer 0: a is 1; in that it is 2."),
            ({0: {"a": 1.0}}, {0: {"b": 1.0}}, "layer 0: b is missing; in that it is 1."),
            ({0: {"a": [1.0, 2.0]}}, {0: {"a": [1.0]}}, "layer 0: a is [1, 2]; in that it is [1]."),
            ({0: {"a": np.nan}}, {0: {"a": 1.0}}, "layer 0: a is nan; in that it is 1."),
            ({0: {"a": 1.0}, 1: {"a": 1}}, {0: {"a": 1.0}, 1: {"a": 3}}, "layer 1: a is 1; in that it is 3."),
        ],
    )
    def test_the_first_difference_is_told(self, got: Any, due: Any, said: str) -> None:
        mine, yours = ({Place(layer=n): record for n, record in side.items()} for side in (got, due))
        with pytest.raises(BrokenLawError, match=re.escape(said)) as caught:
            compare(mine, yours, what="that")
        assert caught.value.place.layer == int(said[6])

    def test_numbers_may_be_apart_as_far_as_is_said(self) -> None:
        mine, yours = {Place(): {"a": [1.0, np.inf]}}, {Place(): {"a": [1.0 + 1e-7, np.inf]}}
        compare(mine, yours, what="that", tolerance=1e-6)
        with pytest.raises(BrokenLawError):
            compare(mine, yours, what="that")

    def test_what_is_told_of_a_broken_law(self) -> None:
        table = Table(batch=2, padding=(0, 1))
        with pytest.raises(ConformanceError) as caught:
            checks.batch_independent(OfLength(), Table(tokens=4, batch=2, padding=(0, 2)), backend="numpy")
        error = caught.value
        assert (error.law, error.place) == ("batch_independent", Place(batch_row=1))
        assert error.detail == "budget is 2; in the same batch row alone it is 1."
        assert str(error).startswith("OfLength() breaks batch_independent: f(x)[b] = f(x[b])")
        assert "  batch row 1: budget is 2" in str(error)
        assert "\n    example = Table(batch=2, tokens=4, padding=(0, 2))\n" in str(error)
        assert checks.batch_independent(kv.KeepRatio(0.5), table) is None

    def test_an_error_of_the_component_breaks_the_law(self) -> None:
        class Broken(OfLength):
            def budget(self, step: Any) -> int:
                raise ZeroDivisionError("no rows")

        with pytest.raises(ConformanceError, match="raised ZeroDivisionError: no rows") as caught:
            checks.padding_invariant(Broken(), Table())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


class TestKinds:
    @pytest.mark.parametrize(
        ("component", "kind"),
        [
            (kv.h2o(keep=0.5), "Policy"),
            (NumpyBackend(), "Backend"),
            (kv.KeyNorm(), "ImportanceScorer"),
            (kv.KeepRatio(0.5), "Scheduler"),
            (kv.Uniform(), "Allocator"),
            (kv.TopK(), "Selector"),
            (kv.Drop(), "Merger"),
            (kv.MostSimilar(), "Assigner"),
            (kv.Mean(), "Weigher"),
            (kv.TopRecall(kv.Recency()), "Recaller"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_by_their_method(self, component: Any, kind: str) -> None:
        assert kind_of(component).name == kind
        about = checks_of(component, backend="numpy")
        assert list(about) == list(checks.LAWS)
        assert sum(isinstance(check, Check) for check in about.values()) >= 8

    def test_a_pipeline_is_a_policy(self) -> None:
        pipeline = kv.Pipeline(schedule=kv.FixedRows(2), score=kv.Recency())
        assert subject_of(pipeline).component == kv.Policy(prefill=pipeline, decode=pipeline)

    @pytest.mark.parametrize(
        ("component", "said"),
        [
            (3, "3 is neither a Policy nor a stage: it has none of the methods attention_mass (Backend), score"),
            (kv.TopK, "TopK is a class; the kit checks an instance. Hint: TopK(...)."),
            (None, "None is neither a Policy nor a stage"),
        ],
    )
    def test_what_is_none(self, component: Any, said: str) -> None:
        with pytest.raises(kv.PolicyError, match=re.escape(said)):
            kind_of(component)

    def test_what_is_several(self) -> None:
        class Both(OfLength):
            def score(self, view: Any, step: Any) -> Any: ...

        with pytest.raises(kv.PolicyError, match=r"several kinds: ImportanceScorer, Scheduler\. Hint: one class for"):
            kind_of(Both())


# Checks and their order --------------------------------------------------------------------------------------------


ROWS = kv.FixedRows(2)


def check(about: Law, component: Any = ROWS, **options: Any) -> Check:
    """A check of a law that may be none of the kit's."""
    given_ = {"backend": "numpy", "profile": "ci", "sizes": {}, **options}
    return Check(law=about, component=component, subject=subject_of(component, "numpy"), **given_)


class TestChecks:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"expected": {"batch_independant": "so"}}, "'batch_independant': there is no such law. Hint: batch_indep"),
            (
                {"expected": {"dominance": "so"}},
                "'dominance': it does not apply to OfLength() (not about a component of",
            ),
            ({"profile": "slow"}, "profile='slow': there are dev, ci, nightly."),
        ],
    )
    def test_unknown_names_are_errors(self, options: Any, said: str) -> None:
        with pytest.raises(kv.PolicyError, match=re.escape(said)):
            checks_of(OfLength(), backend="numpy", **options)

    def test_an_unknown_backend_is_an_error(self) -> None:
        with pytest.raises(kv.BackendUnavailableError, match=r"backend='cupy': there is no such backend"):
            checks_of(OfLength(), backend="cupy")

    def test_a_law_that_needs_more_than_there_is(self) -> None:
        about = checks_of(kv.TopK(), backend="numpy", sizes={"heads": 1})
        assert about["head_equivariant"] == "needs 2 heads, and heads=1"
        assert repr(about["batch_independent"]) == "batch_independent-numpy"

    def test_the_smallest_example_is_shown(self) -> None:
        with pytest.raises(ConformanceError) as caught:
            check(checks.padding_invariant, component := OfLength())(component)
        assert re.search(r"^example = Table\((seed=\d+, )?(now=3|tokens=\d)?\)$", caught.value.script, re.M)

    def test_what_is_expected_to_fail_is_tried_for_longer(self) -> None:
        times: Counter[str] = Counter()

        @law("Scheduler")
        def counts(subject: Any, example: Any) -> None:
            """It is tried."""
            times["now"] += 1

        check(counts)(ROWS)
        assert times.pop("now") == FEW
        check(counts, expected="it is so")(ROWS)
        assert times["now"] >= 4 * FEW

    def test_examples_are_the_same_every_time_in_ci(self) -> None:
        seen: list[list[Any]] = [[], []]

        @law("Scheduler")
        def notes(subject: Any, example: Any) -> None:
            """It is tried."""
            seen[-1].append(example)

        for _ in range(2):
            seen.append([])
            check(notes)(ROWS)
        assert seen[-1] == seen[-2] != []

    def test_a_failure_that_does_not_come_again_is_one(self) -> None:
        tried: list[Any] = []

        @law("Scheduler")
        def once(subject: Any, example: Any) -> None:
            """It holds but once."""
            tried.append(example)
            if len(tried) == 5:
                fail(Place(), "this time it does not.")

        with pytest.raises(ConformanceError, match=r"sometimes: this time it does not\. The same example does"):
            check(once)(ROWS)

    def test_a_check_is_about_one_component(self) -> None:
        about = checks_of(OfLength(), backend="numpy")["deterministic"]
        assert isinstance(about, Check)
        with pytest.raises(kv.PolicyError, match=r"this check is about OfLength\(\); it was called with FixedRows"):
            about(ROWS)

    def test_a_law_is_not_tried_on_what_it_is_not_about(self) -> None:
        with pytest.raises(kv.PolicyError, match=r"the law does not apply \(not about a component of kind Scheduler\)"):
            checks.dominance(ROWS, Table())
        with pytest.raises(kv.PolicyError, match=r"it is tried on a Table, not a Request\. Hint: Table\(\)\."):
            checks.deterministic(ROWS, Request())

    def test_sizes_are_those_of_the_examples(self) -> None:
        seen: list[Any] = []

        @law("Scheduler", least={"heads": 2})
        def notes(subject: Any, example: Any) -> None:
            """It is tried."""
            seen.append(example)

        check(notes, sizes={"tokens": 5})(ROWS)
        assert {(table.tokens, table.heads >= 2) for table in seen} == {(5, True)}


class TestOrder:
    def ordered(self, component: Any, **expected: str) -> Mapping[str, OrderedCheck]:
        about = in_order(checks_of(component, backend="numpy", expected=expected))
        return {name: check for name, check in about.items() if isinstance(check, OrderedCheck)}

    def test_what_rests_on_what_has_failed_is_not_told(self) -> None:
        told = self.ordered(mine := OfLength())
        assert told["well_formed"].settle(mine) == (None, None)
        error, earlier = told["padding_invariant"].settle(mine)
        assert (error and error.law, earlier) == ("padding_invariant", None)
        error, earlier = told["batch_independent"].settle(mine)
        assert error is not None
        assert (error.law, earlier) == ("padding_invariant", told["padding_invariant"])

    def test_only_a_failure_asks_for_earlier_ones(self) -> None:
        told = self.ordered(mine := OfLength())
        assert told["deterministic"].settle(mine) == (None, None)
        assert told["well_formed"].outcome is None
        assert told["batch_independent"].settle(mine)[1] is told["padding_invariant"]
        assert told["well_formed"].outcome is True

    def test_an_expected_failure_explains_nothing(self) -> None:
        told = self.ordered(mine := OfLength(), padding_invariant="it is so")
        assert told["padding_invariant"] not in told["batch_independent"].before
        error, earlier = told["batch_independent"].settle(mine)
        assert (error and error.law, earlier) == ("batch_independent", None)

    def test_nothing_is_tried_twice(self) -> None:
        calls: list[int] = []

        @law("Scheduler")
        def counts(subject: Any, example: Any) -> None:
            """It is tried."""
            calls.append(1)

        ordered = OrderedCheck(check(counts))
        ordered(ROWS)
        ordered(ROWS)
        assert len(calls) == FEW


# In pytest ---------------------------------------------------------------------------------------------------------

Run = Callable[..., pytest.RunResult]


class TestParameters:
    @pytest.fixture
    def run(self, pytester: pytest.Pytester) -> Run:
        """Run a file that holds these parameters to the laws."""

        def run(parameters: str, *options: str) -> pytest.RunResult:
            pytester.makepyfile(f"{STAGES}\n\n@parametrize_with_checks({parameters}){TEST}")
            return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA", *options)

        return run

    def test_what_is_right_passes(self, run: Run) -> None:
        result = run("[Fine()]")
        laws = [name for name, check in checks_of(kv.KeepRatio(0.5)).items() if not isinstance(check, str)]
        result.assert_outcomes(passed=2 * len(laws))
        result.stdout.fnmatch_lines([f"PASSED *::test_laws[[]Fine-{laws[0]}-numpy[]]"])

    def test_one_fault_is_one_failure(self, run: Run) -> None:
        result = run('[OfLength()], backends=["numpy"]')
        result.assert_outcomes(failed=1, skipped=1, passed=len(self.laws()) - 2)
        result.stdout.fnmatch_lines(
            [
                "*OfLength() breaks padding_invariant: f(pad(x)) = f(x)*",
                "*checks.padding_invariant(component, example, backend='numpy')",
                "SKIPPED * not tried: padding_invariant fails, and comes first",
                "FAILED *::test_laws[[]OfLength-padding_invariant-numpy[]]*",
            ]
        )

    def test_all_rests_on_the_structural_laws(self, run: Run) -> None:
        result = run('[Zero()], backends=["numpy"]')
        result.assert_outcomes(failed=1, skipped=len(self.laws()) - 1)
        result.stdout.fnmatch_lines(["FAILED *::test_laws[[]Zero-well_formed-numpy[]]*"])

    def test_a_law_asked_for_alone_tells_what_it_rests_on(self, run: Run) -> None:
        result = run('[OfLength()], backends=["numpy"]', "-k", "batch_independent")
        result.assert_outcomes(failed=1, deselected=len(self.laws()) - 1)
        result.stdout.fnmatch_lines(["*OfLength() breaks padding_invariant: *"])

    def test_a_failure_that_is_expected(self, run: Run) -> None:
        both = '{"padding_invariant": "it counts padding", "batch_independent": "likewise"}'
        result = run(f'[OfLength()], backends=["numpy"], expected_failures={{"OfLength": {both}}}')
        result.assert_outcomes(xfailed=2, passed=len(self.laws()) - 2)
        result.stdout.fnmatch_lines(["XFAIL *::test_laws[[]OfLength-padding_invariant-numpy[]] - it counts padding*"])

    def test_a_law_that_holds_after_all_is_reported(self, run: Run) -> None:
        result = run('[Fine()], backends=["numpy"], expected_failures={"Fine": {"deterministic": "it was not"}}')
        result.assert_outcomes(failed=1, passed=len(self.laws()) - 1)
        result.stdout.fnmatch_lines(["*XPASS(strict)*it was not*"])

    def test_unknown_names_stop_the_run(self, pytester: pytest.Pytester) -> None:
        said = {
            '[Fine()], expected_failures={"Fin": {}}': "expected_failures['Fin']: no such component here. Hint: Fine.",
            '[Fine()], sizes={"Coarse": {}}': "sizes['Coarse']: no such component here. There are: Fine.",
            '[Fine()], expected_failures={"Fine": {"finit": ""}}': (
                "expected failure of 'finit': there is no such law. Hint: finite."
            ),
            '[Fine()], expected_failures={"Fine": {"finite": ""}}': (
                "expected failure of 'finite': it does not apply to Fine(rows=3)"
            ),
            '[Fine()], backends=["cupy"]': "backend='cupy': there is no such backend. Known: numpy, torch.",
            "[3]": "3 is neither a Policy nor a stage",
            "[Fine]": "Fine is a class; the kit checks an instance. Hint: Fine(...).",
        }
        files = {f"test_{n}": f"{STAGES}\n\n@parametrize_with_checks({wrong}){TEST}" for n, wrong in enumerate(said)}
        pytester.makepyfile(**files)
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
        result.assert_outcomes(errors=len(said))
        for line in said.values():
            assert f"test_laws: {line}" in words(result.stdout.str())

    def test_names(self, run: Run) -> None:
        result = run('{"short": Fine(1), "long": Fine(9)}, backends=["numpy"]', "-k", "well_formed")
        result.assert_outcomes(passed=2, deselected=2 * len(self.laws()) - 2)
        result.stdout.fnmatch_lines(
            ["PASSED *[[]short-well_formed-numpy[]]", "PASSED *[[]long-well_formed-numpy[]]"], consecutive=True
        )

    def test_equal_classes_are_named_by_what_they_print(self, run: Run) -> None:
        result = run('[Fine(1), Fine(9)], backends=["numpy"]', "-k", "well_formed")
        result.stdout.fnmatch_lines(["PASSED *[[]Fine(rows=1)-well_formed-numpy[]]"])

    def test_the_same_twice_is_an_error(self) -> None:
        with pytest.raises(kv.PolicyError, match=r"KeyNorm\(\) is given twice\. Hint: a mapping gives them names\."):
            parametrize_with_checks([kv.KeyNorm(), kv.KeyNorm()])

    def test_sizes_leave_laws_out(self, run: Run) -> None:
        result = run('[Fine()], backends=["numpy"], sizes={"Fine": {"batch": 1}}')
        result.assert_outcomes(passed=len(self.laws()) - 1)
        assert "batch_independent" not in result.stdout.str()

    def test_the_backend_is_an_option(self, run: Run) -> None:
        result = run('[Fine()], backends=["torch"]', "--kvpolicy-backend", "numpy", "-k", "well_formed")
        result.stdout.fnmatch_lines(["PASSED *[[]Fine-well_formed-numpy[]]"])
        assert "-torch]" not in result.stdout.str()

    def test_the_profile_is_an_option(self, run: Run) -> None:
        result = run("[Fine()]", "--kvpolicy-profile", "slow")
        result.assert_outcomes(errors=1)
        assert "test_laws: profile='slow': there are dev, ci, nightly." in words(result.stdout.str())

    def laws(self) -> list[str]:
        """Those about a schedule without a limit."""
        about = checks_of(OfLength(), backend="numpy")
        return [name for name, check in about.items() if not isinstance(check, str)]


# On the command line -----------------------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]


class TestCommand:
    @pytest.fixture
    def check(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
        """`kvpolicy check` beside a module of stages."""
        (tmp_path / "kit_stages.py").write_text(STAGES, encoding="utf-8")
        (tmp_path / "kit_needy.py").write_text("import no_such_library\n", encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.delitem(sys.modules, "kit_stages", raising=False)

        def check(*arguments: str) -> tuple[int, str, str]:
            runner = CliRunner(env={"COLUMNS": "160", "TERMINAL_WIDTH": "160"})
            result = runner.invoke(app, ["check", *arguments])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            return result.exit_code, words(result.stdout), words(result.stderr)

        return check

    @pytest.mark.parametrize(
        "target", ["kit_stages:Fine", "kit_stages:Fine(rows=2)", "kit_stages:fine", "kit_stages:make"]
    )
    def test_what_is_right(self, target: str, check: Command) -> None:
        code, out, err = check(target, "--backend", "numpy", "--law", "padding_invariant")
        assert (code, err) == (0, "")
        assert "Fine(rows=" in out
        assert "well_formed pass" in out
        assert "padding_invariant pass" in out
        assert out.endswith("no law is broken")

    def test_what_is_wrong(self, check: Command) -> None:
        code, out, err = check("kit_stages:OfLength", "--backend", "numpy")
        assert (code, err) == (1, "")
        assert "padding_invariant fail" in out
        assert "batch_independent not tried" in out
        assert "dominance not applicable not about a component of kind Scheduler" in out
        assert out.count(" breaks ") == 1
        assert (
            "from kit_stages import OfLength from kvpolicy.testing import Table, checks component = OfLength() exam"
            in out
        )
        assert out.endswith("broken: padding_invariant")

    def test_the_reproducer_can_be_pasted(self, check: Command, tmp_path: Path) -> None:
        runner = CliRunner(env={"COLUMNS": "40", "TERMINAL_WIDTH": "40"})  # lines are not wrapped, however long
        result = runner.invoke(
            app, ["check", "kit_stages:OfLength", "--backend", "numpy", "--law", "padding_invariant"]
        )
        lines = result.stdout.partition("To see it again:")[2].splitlines()
        script = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
        with pytest.raises(ConformanceError, match=r"OfLength\(\) breaks padding_invariant"):
            exec(script, {})

    def test_what_is_expected(self, check: Command) -> None:
        expect = ("--expect", "padding_invariant=it counts padding", "--expect", "batch_independent=likewise")
        code, out, _ = check("kit_stages:OfLength", "--backend", "numpy", *expect)
        assert code == 0
        assert "padding_invariant expected expected to fail: it counts padding" in out

    def test_what_is_expected_and_holds(self, check: Command) -> None:
        code, out, _ = check("kit_stages:Fine", "--backend", "numpy", "--expect", "deterministic=it was not")
        assert code == 1
        assert "deterministic passes after all" in out
        assert out.endswith("broken: deterministic")

    def test_a_recipe(self, check: Command) -> None:
        code, out, _ = check("streaming_llm", "--backend", "numpy", "--law", "budget_exact")
        assert code == 0
        assert "KeepRatio(keep=0.5)" in out
        assert "budget_exact pass" in out
        assert check("streaming_llm(rows=8)", "--backend", "numpy", "--law", "budget_exact")[0] == 0

    def test_several_backends(self, check: Command) -> None:
        code, out, _ = check("kit_stages:Fine", "--backend", "numpy", "--backend", "torch", "--law", "deterministic")
        assert code == 0
        assert "law numpy torch what it says" in out
        assert "deterministic pass pass" in out

    def test_sizes(self, check: Command) -> None:
        code, out, _ = check("kit_stages:Fine", "--backend", "numpy", "--size", "batch=1", "--law", "batch_independent")
        assert code == 0
        assert "batch_independent not applicable needs 2 batch, and batch=1" in out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ("kit_stages:Finer", "'kit_stages:Finer': module 'kit_stages' has no 'Finer'. Hint: Fine."),
            (
                "kit_stage:Fine",
                "'kit_stage:Fine': there is no module 'kit_stage' here or among what is installed. Hint:",
            ),
            (":Fine", "':Fine': '' is no name of a module."),
            ("kit_stages:Fine(rows=", "'Fine(rows=' is neither a recipe nor a call of one with plain arguments."),
            (
                "kit_stages:Fine(lines=2)",
                "'kit_stages:Fine(lines=2)' cannot be made: Fine.__init__() got an unexpected",
            ),
            ("kit_stages:fine(rows=2)", "fine is an instance already and takes no arguments. Hint: kit_stages:fine."),
            ("kit_stages:number", "3 is neither a Policy nor a stage"),
            ("h3o", "no recipe 'h3o'; there are: full, elastic_cache,"),
            ("h2o(width=2)", "h2o(width=...): it takes"),
            ("kit_stages:Fine --law finit", "--law finit: there is no such law. Hint: finite."),
            ("kit_stages:Fine --size heads", "--size heads: it takes name=value."),
            ("kit_stages:Fine --size heads=0", "--size heads=0: a size is an integer >= 1."),
            (
                "kit_stages:Fine --size colour=3",
                "sizes: 'colour' is no size of an example for Fine(rows=3). There are:",
            ),
            ("kit_stages:Fine --size dim=3", "Table(dim=3): dim must be even. Hint: 4."),
            ("kit_stages:Fine --profile slow", "profile='slow': there are dev, ci, nightly."),
            ("kit_stages:Fine --backend cupy", "backend='cupy': there is no such backend. Known: numpy, torch."),
            ("kit_stages:Fine --expect finit=so", "expected failure of 'finit': there is no such law. Hint: finite."),
            ("kit_stages:Fine --expect finite=so", "expected failure of 'finite': it does not apply to Fine(rows=3)"),
            ("kit_stages:Fine --expect finite", "--expect finite: it takes name=value."),
        ],
    )
    def test_slips_are_one_line(self, arguments: str, said: str, check: Command) -> None:
        code, _, err = check(*arguments.split(" "), *(() if "--backend" in arguments else ("--backend", "numpy")))
        assert code == 2
        assert err.startswith("error: ")
        assert said in err

    def test_a_module_that_cannot_be_imported_keeps_its_error(self, check: Command) -> None:
        result = CliRunner().invoke(app, ["check", "kit_needy:Fine"])
        assert isinstance(result.exception, ModuleNotFoundError)
        assert result.exception.name == "no_such_library"
