"""Policies as values, what their constructors refuse, and what the engine refuses from a user's stages."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from driving import drive, make_request

import kvpolicy
from kvpolicy import (
    RECIPES,
    AdaptiveHeads,
    AttentionMass,
    CacheView,
    Column,
    Drop,
    FixedPoint,
    FixedRows,
    Fold,
    KeepRatio,
    Mean,
    MemoryBudget,
    MissingColumnError,
    NearestPosition,
    Pipeline,
    Plan,
    PlanError,
    Policy,
    PolicyError,
    Pooled,
    Recency,
    Scored,
    Selection,
    Step,
    TopK,
    Uniform,
    elastic_cache,
    full,
    h2o,
    streaming_llm,
)

BUDGETS: list[dict[str, Any]] = [{"keep": 0.2}, {"rows": 70}, {"memory": "64MiB"}, {"memory": 4096}]
NAMES = """full elastic_cache h2o streaming_llm snapkv pyramid_kv ada_kv head_kv tova cam k_norm key_diff random
look_m d2o kv_merger keep_kv vl_cache air_cache expected_attention adore"""
NEEDED: dict[str, Any] = {"head_kv": {"table": ((1, 2), (3, 0.5))}}  # arguments that have no default
BUDGETED = [name for name in RECIPES if name != "full"]


def made(name: str, **budget: Any) -> Policy:
    return RECIPES[name](**NEEDED.get(name, {}), **budget)


POLICIES = [
    full(),
    Policy(count_bias=True),
    Policy(positions="slots"),
    *(made(name, **budget) for name in BUDGETED for budget in BUDGETS),
    elastic_cache(keep=0.5, first=0, last=3, distance=7),
    h2o(rows=8, recent=0.25),
    streaming_llm(rows=8, sinks=2),
    Policy(
        prefill=Pipeline(
            schedule=FixedRows(5),
            score=AttentionMass(heads="mean"),
            allocate=Uniform(),
            select=TopK(first=1, last=2, recent=0.5),
            merge=Fold(NearestPosition(), Mean(), keys=False),
        ),
        decode=Pipeline(schedule=MemoryBudget("1.5 GB"), score=FixedPoint(distance=3, first=0), merge=Drop()),
    ),
]


def parts(value: Any) -> list[Any]:
    """A policy, its pipelines and their stages."""
    if not is_dataclass(value):
        return []
    return [value, *(part for f in fields(value) for part in parts(getattr(value, f.name)))]


class TestValues:
    @pytest.mark.parametrize("policy", POLICIES, ids=repr)
    def test_it_prints_as_its_constructor(self, policy: Policy) -> None:
        for part in parts(policy):
            again = eval(repr(part), dict(vars(kvpolicy)))
            assert again == part
            assert type(again) is type(part)
            assert hash(again) == hash(part)
            assert repr(again) == repr(part)

    @pytest.mark.parametrize("policy", POLICIES, ids=repr)
    def test_it_survives_a_copy_and_a_pickle(self, policy: Policy) -> None:
        assert copy.deepcopy(policy) == policy
        assert pickle.loads(pickle.dumps(policy)) == policy

    def test_policies_that_differ_are_unequal(self) -> None:
        assert len(set(POLICIES)) == len(POLICIES)
        for i, one in enumerate(POLICIES):
            for j, other in enumerate(POLICIES):
                assert (one == other) == (i == j)

    def test_defaults_are_not_printed(self) -> None:
        assert repr(streaming_llm(rows=8)) == (
            "Policy(prefill=Pipeline(schedule=FixedRows(rows=8), score=Recency(), select=TopK(first=4)), "
            "decode=Pipeline(schedule=FixedRows(rows=8), score=Recency(), select=TopK(first=4)))"
        )
        assert repr(full()) == "Policy()"

    @pytest.mark.parametrize("policy", POLICIES, ids=repr)
    def test_nothing_can_be_changed(self, policy: Policy) -> None:
        for part in parts(policy):
            for f in fields(part):
                with pytest.raises(FrozenInstanceError):
                    setattr(part, f.name, None)
                with pytest.raises(FrozenInstanceError):
                    delattr(part, f.name)
            with pytest.raises((AttributeError, TypeError)):
                part.something_new = 1

    def test_every_recipe_is_a_public_name_that_gives_a_policy(self) -> None:
        assert list(RECIPES) == NAMES.split()
        for name, recipe in RECIPES.items():
            assert recipe.__name__ == name
            assert getattr(kvpolicy, name) is recipe
            assert isinstance(made(name, **({} if name == "full" else {"keep": 0.5})), Policy)
        with pytest.raises(TypeError):
            RECIPES["mine"] = full  # type: ignore[index]

    def test_the_catalogue_is_every_recipe_that_needs_no_more_than_a_budget(self) -> None:
        due = {name: RECIPES[name](keep=0.3) for name in BUDGETED if name not in NEEDED}
        assert kvpolicy.catalogue(keep=0.3) == {"full": full(), **due}
        with pytest.raises(PolicyError, match="keep=0"):
            kvpolicy.catalogue(keep=0)

    def test_an_exact_fraction_is_a_share(self) -> None:
        request = make_request(prompt=10, steps=3)
        exact, rounded = (drive(h2o(keep=keep), request) for keep in (Fraction(1, 2), 0.5))
        for a, b in zip(exact.passes, rounded.passes, strict=True):
            assert a.tables[0][0][0].positions == b.tables[0][0][0].positions


class Scorer:
    def score(self, view: Any, step: Any, /) -> Any:
        return view.values.sum(-1)


ROWS: Any = FixedRows(3)


class TestRefusals:
    @pytest.mark.parametrize("recipe", BUDGETED)
    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            *(("keep", value) for value in (0, 0.0, -0.1, 1.5, "x", "0.2", True, float("nan"), float("inf"), [0.2])),
            *(("rows", value) for value in (-1, 0, 2.5, 8.0, "8", True, float("nan"), [8])),
            *(("memory", v) for v in ("x", "", 0, -5, "-3MiB", "0MB", "3 XB", "MiB", "5K", 1.5, True, b"1MB", [1])),
        ],
    )
    def test_a_budget_that_is_none(self, recipe: str, argument: str, value: Any) -> None:
        with pytest.raises(PolicyError) as caught:
            made(recipe, **{argument: value})
        assert f"{argument}={value!r}" in str(caught.value)

    @pytest.mark.parametrize("recipe", BUDGETED)
    @pytest.mark.parametrize(
        ("given", "got"),
        [
            ({}, "got none"),
            ({"keep": 0.2, "rows": 8}, "got keep=0.2, rows=8"),
            ({"rows": 8, "memory": "1MB"}, "got rows=8, memory='1MB'"),
            ({"keep": 0.2, "rows": 8, "memory": 10}, "got keep=0.2, rows=8, memory=10"),
        ],
    )
    def test_not_exactly_one_budget(self, recipe: str, given: dict[str, Any], got: str) -> None:
        with pytest.raises(PolicyError, match="exactly one of keep=, rows= and memory=") as caught:
            made(recipe, **given)
        assert got in str(caught.value)
        assert recipe in str(caught.value)

    @pytest.mark.parametrize(
        ("make", "names"),
        [
            (lambda: elastic_cache(rows=1), "elastic_cache(rows=1)"),
            (lambda: elastic_cache(rows=5, first=3, last=3), "elastic_cache(rows=5)"),
            (lambda: streaming_llm(rows=3), "streaming_llm(rows=3)"),
            (lambda: elastic_cache(keep=0.2, first=-1), "first=-1"),
            (lambda: elastic_cache(keep=0.2, first="x"), "first='x'"),
            (lambda: elastic_cache(keep=0.2, last=1.5), "last=1.5"),
            (lambda: elastic_cache(keep=0.2, last=None), "last=None"),
            (lambda: elastic_cache(keep=0.2, distance=-2), "distance=-2"),
            (lambda: elastic_cache(keep=0.2, distance="x"), "distance='x'"),
            (lambda: streaming_llm(keep=0.2, sinks="x"), "'x'"),
            (lambda: streaming_llm(keep=0.2, sinks=-1), "=-1"),
            (lambda: h2o(keep=0.2, recent=1.5), "recent=1.5"),
            (lambda: h2o(keep=0.2, recent=-0.5), "recent=-0.5"),
            (lambda: h2o(keep=0.2, recent="x"), "recent='x'"),
            (lambda: h2o(keep=0.2, recent=True), "recent=True"),
            (lambda: h2o(keep=0.2, recent=float("nan")), "recent=nan"),
            (lambda: AttentionMass(heads="both"), "heads='both'"),
            (lambda: TopK(first=True), "first=True"),
            (lambda: TopK(last=-1), "last=-1"),
            (lambda: FixedPoint(first=-1), "first=-1"),
            (lambda: NearestPosition(first=-1), "first=-1"),
            (lambda: AdaptiveHeads(floor=1.5), "floor=1.5"),
            (lambda: Pooled(Recency(), kernel=-1), "kernel=-1"),
            (lambda: Fold(NearestPosition(), Mean(), keys="no"), "keys='no'"),
            (lambda: Policy(count_bias="no"), "count_bias='no'"),
            (lambda: h2o(memory="9" * 400), f"memory='{'9' * 400}'"),  # no float reaches it
            (lambda: h2o(memory="9" * 308 + "KB"), "KB'"),
            (lambda: kvpolicy.pyramid_kv(keep=0.2, beta=10**400), f"beta={10**400}"),
            (lambda: kvpolicy.kv_merger(keep=0.2, epsilon=-(10**400)), f"epsilon={-(10**400)}"),
            (lambda: kvpolicy.d2o(keep=0.2, exempt=3), "exempt=3"),
            (lambda: kvpolicy.d2o(keep=0.2, exempt=None), "exempt=None"),
            (lambda: kvpolicy.d2o(keep=0.2, exempt=(1, -1)), "exempt=-1"),
            (lambda: kvpolicy.head_kv(keep=0.2, table=3), "table=3"),
            (lambda: kvpolicy.head_kv(keep=0.2, table=None), "table=None"),
            (lambda: kvpolicy.head_kv(keep=0.2, table=[1, 2]), "table=[1, 2]"),
            (lambda: kvpolicy.head_kv(keep=0.2, table=[[10**400]]), f"table[0][0]={10**400}"),
        ],
    )
    def test_an_argument_out_of_range(self, make: Callable[[], Any], names: str) -> None:
        with pytest.raises(PolicyError) as caught:
            make()
        assert names in str(caught.value)

    @pytest.mark.parametrize(
        ("make", "names"),
        [
            (
                lambda: Pipeline(schedule=KeepRatio, score=Recency()),
                ["schedule=KeepRatio", "instance", "KeepRatio(...)"],
            ),
            (lambda: Pipeline(schedule=ROWS, score=Recency), ["score=Recency", "instance"]),
            (lambda: Pipeline(schedule=ROWS, score=Scorer), ["score=Scorer", "instance"]),
            (lambda: Pipeline(schedule=Recency(), score=Recency()), ["schedule=Recency()", "Scheduler", "budget"]),
            (lambda: Pipeline(schedule=ROWS, score=ROWS), ["score=FixedRows(rows=3)", "ImportanceScorer", "score"]),
            (lambda: Pipeline(schedule=ROWS, score=None), ["score=None", "ImportanceScorer"]),
            (lambda: Pipeline(schedule=3, score=Recency()), ["schedule=3", "Scheduler"]),
            (lambda: Pipeline(schedule=ROWS, score=Recency(), select=Drop()), ["select=Drop()", "Selector"]),
            (lambda: Pipeline(schedule=ROWS, score=Recency(), merge=TopK()), ["merge=TopK()", "Merger"]),
            (lambda: Pipeline(schedule=ROWS, score=Recency(), merge=Mean()), ["merge=Mean()", "Merger"]),
            (lambda: Pipeline(schedule=ROWS, score=Recency(), allocate=TopK()), ["allocate=TopK()", "Allocator"]),
            (lambda: Fold(Mean(), Mean()), ["assign=Mean()", "Assigner"]),
            (lambda: Fold(NearestPosition(), NearestPosition()), ["weigh=NearestPosition()", "Weigher"]),
            (lambda: Fold(NearestPosition, Mean()), ["assign=NearestPosition", "instance"]),
            (lambda: Policy(prefill=AttentionMass()), ["prefill=AttentionMass()", "Pipeline"]),
            (lambda: Policy(decode=Pipeline), ["decode=", "Pipeline(schedule=..., score=...)"]),
        ],
    )
    def test_a_stage_in_the_wrong_place(self, make: Callable[[], Any], names: list[str]) -> None:
        with pytest.raises(PolicyError) as caught:
            make()
        for name in names:
            assert name in str(caught.value)

    def test_a_table_may_be_of_lists_or_an_array(self) -> None:
        due = kvpolicy.head_kv(keep=0.2, table=((1, 2), (3, 0.5)))
        for table in ([[1, 2], [3, 0.5]], np.array([[1, 2], [3, 0.5]])):
            assert kvpolicy.head_kv(keep=0.2, table=table) == due
            assert hash(kvpolicy.head_kv(keep=0.2, table=table)) == hash(due)

    def test_memory_for_less_than_a_row_names_the_bytes_needed(self) -> None:
        request = make_request(layers=2, heads=2, dim=4, prompt=6, steps=0)
        row = 2 * 2 * (4 + 4) * 8
        with pytest.raises(PolicyError, match=f"at least {2 * row} bytes"):
            drive(streaming_llm(memory=2 * row - 1, sinks=0), request)
        assert drive(streaming_llm(memory=2 * row, sinks=0), request).passes[0].tables[0][0][0].positions == [5]


# A user's stages: plain classes that inherit from nothing -----------------------------------------------------------


@dataclass(frozen=True)
class LoudValues:
    """Keep rows whose values are loud."""

    power: float = 1.0

    def score(self, view: CacheView, step: Step) -> Any:
        return view.xp.linalg.vector_norm(view.values, axis=-1) ** self.power


class IntoTheNewest:
    """Everything dropped goes into the newest kept row, a quarter of it, values only."""

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        view, xp = scored.view, scored.view.xp
        arrival = xp.where(selection.keep, view.positions, xp.full_like(view.positions, -1))
        newest = xp.argmax(arrival, axis=-1)[..., None]
        leaves = view.valid & ~selection.keep
        into = xp.where(leaves, newest, xp.full_like(arrival, -1))[..., None]
        weight = xp.full_like(scored.scores, 0.25)[..., None]
        return Plan(selection.keep, into, weight, xp.ones_like(scored.scores), merge_keys=False)


class Every:
    """What a function of the step says."""

    def __init__(self, answer: Callable[[Step], Any]) -> None:
        self.answer = answer

    def budget(self, step: Step) -> Any:
        return self.answer(step)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
class TestUserStages:
    def test_a_scorer(self, backend: str) -> None:
        request = make_request(layers=2, groups=2, prompt=9, steps=2)
        policy = Policy(prefill=Pipeline(schedule=FixedRows(4), score=LoudValues(2.0)))
        trace = drive(policy, request, backend=backend)
        loud = np.linalg.norm(request.values, axis=-1)
        for layer, h in np.ndindex(2, 2):
            best = sorted(np.argsort(loud[layer, 0, h, :9])[-4:].tolist())
            assert trace.passes[0].tables[layer][0][h].positions == best
            assert trace.passes[2].tables[layer][0][h].positions == [*best, 9, 10]

    def test_a_merger(self, backend: str) -> None:
        request = make_request(prompt=6, steps=0, heads=1)
        policy = Policy(prefill=Pipeline(schedule=FixedRows(2), score=Recency(), merge=IntoTheNewest()))
        trace = drive(policy, request, backend=backend)
        (table,) = trace.passes[0].tables[0][0]
        values, keys = request.values[0, 0, 0], request.keys[0, 0, 0]
        assert table.positions == [4, 5]
        assert table.keys.tolist() == keys[4:].tolist()
        assert table.values[0].tolist() == values[4].tolist()
        np.testing.assert_allclose(table.values[1], values[5] + values[:4].sum(axis=0) / 4, rtol=1e-12)
        assert table.columns["count"].tolist() == [1, 5]
        assert (trace.session.report().merged, trace.session.report().evicted) == (4, 0)

    @pytest.mark.parametrize(
        ("answer", "due"),
        [
            (lambda step: 3, [[4, 5, 6], [4, 5, 6]]),
            (lambda step: np.int32(3), [[4, 5, 6], [4, 5, 6]]),
            (lambda step: np.array([2, 4]), [[5, 6], [3, 4, 5, 6]]),
            (lambda step: step.seen // 2, [[4, 5, 6], [5, 6]]),  # row 1 has two tokens of padding
            (lambda step: None, [[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6]]),
            (lambda step: 99, [[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6]]),
        ],
    )
    def test_a_scheduler(self, backend: str, answer: Callable[[Step], Any], due: list[list[int]]) -> None:
        request = make_request(batch=2, prompt=7, steps=0, padding=(0, 2))
        policy = Policy(prefill=Pipeline(schedule=Every(answer), score=Recency()))
        trace = drive(policy, request, backend=backend)
        for b in range(2):
            assert [table.positions for table in trace.passes[0].tables[0][b]] == [due[b]] * 2


class Answer:
    """Every stage at once, answering what it is told to; right in layer 0, wrong in layer 1."""

    whole_model = False

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    def score(self, view: Any, step: Any) -> Any:
        return self.answer(view) if view.layer == 1 else view.xp.astype(view.positions, view.xp.float32)

    def observe(self, view: Any, step: Any) -> Any:
        return {}

    def budget(self, step: Any) -> Any:
        return self.answer(step)

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Any) -> Any:
        right = Uniform().allocate(budget, layers, step)
        return self.answer(right[0]) if layers[0].view.layer == 1 else right

    def select(self, scored: Any, quota: Any, step: Any) -> Any:
        right = TopK().select(scored, quota, step)
        return self.answer((scored.view, right)) if scored.view.layer == 1 else right

    def merge(self, scored: Any, selection: Any, step: Any) -> Any:
        return self.answer((scored.view, selection)) if scored.view.layer == 1 else Plan(selection.keep)


class Watch(Answer):
    """A scorer whose columns are wrong in layer 1."""

    def score(self, view: Any, step: Any) -> Any:
        return view.xp.astype(view.positions, view.xp.float32)

    def observe(self, view: Any, step: Any) -> Any:
        return self.answer(view) if view.layer == 1 else {}


def first_dropped(view: CacheView, selection: Selection) -> Any:
    xp = view.xp
    return xp.argmax(xp.astype(view.valid & ~selection.keep, xp.int64), axis=-1)[..., None, None]


def folding(target_of: Callable[[CacheView, Selection], Any], **changes: Any) -> Callable[[Any], Plan]:
    """A merger's answer: the first dropped row folds as told."""

    def answer(given: tuple[CacheView, Selection]) -> Plan:
        view, selection = given
        xp = view.xp
        leaves = (xp.cumsum(xp.astype(view.valid & ~selection.keep, xp.int64), axis=-1) == 1)[..., None]
        leaves = leaves & (view.valid & ~selection.keep)[..., None]
        target = xp.where(leaves, target_of(view, selection), xp.full_like(view.positions, -1)[..., None])
        weight = xp.astype(xp.full_like(target, 1), xp.float32)
        parts = {"into": target, "weight": weight, "self_weight": weight[..., 0]}
        parts.update({name: change(parts[name], xp) for name, change in changes.items()})
        return Plan(selection.keep, **parts)

    return answer


def first_kept(view: CacheView, selection: Selection) -> Any:
    xp = view.xp
    return xp.argmax(xp.astype(selection.keep, xp.int64), axis=-1)[..., None, None]


SCORES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "NaN": (lambda v: v.values.sum(-1) * float("nan"), "NaN"),
    "NaN in one place": (lambda v: v.xp.where(v.positions == 5, float("nan"), v.values.sum(-1)), "row 5"),
    "a shape of vectors": (lambda v: v.values, "[2, 2, 8, 4]"),
    "a shape without heads": (lambda v: v.values.sum(-1)[:, 0], "[2, 8]"),
    "integers": (lambda v: v.positions, "int64"),
    "bools": (lambda v: v.valid, "bool"),
    "None": (lambda v: None, "NoneType"),
    "a list": (lambda v: v.values.sum(-1).tolist(), "list"),
}
SELECTIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "None": (lambda given: None, "NoneType"),
    "a bare mask": (lambda given: given[1].keep, "must return a Selection"),
    "integers": (lambda given: Selection(given[0].xp.astype(given[1].keep, given[0].xp.int64)), "int64"),
    "a wrong shape": (lambda given: Selection(given[1].keep[..., :3]), "[2, 2, 3]"),
    "padding": (lambda given: Selection(given[1].keep | ~given[0].valid), "padding"),
}
QUOTAS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "None": (lambda right: None, "NoneType"),
    "too few layers": (lambda right: [], "0 quotas for 1 layers"),
    "no arrays": (lambda right: [right.tolist()], "must be an array"),
    "a wrong shape": (lambda right: [right[:, :1]], "(2, 1)"),
    "one too many": (lambda right: [right + np.array([[1, 0], [0, 0]])], "handed out [9 8]"),
    "fewer": (lambda right: [right - 1], "handed out [6 6]"),
    "fractions": (lambda right: [right + np.array([[0.5, -0.5]])], "integers"),
    "negative": (lambda right: [right + np.array([[5, -5]])], "integers >= 0"),
}
PLANS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "None": (lambda given: None, "must return a Plan"),
    "the selection": (lambda given: given[1], "must return a Plan"),
    "other rows": (lambda given: Plan(given[0].valid & ~given[1].keep), "does not keep the rows"),
    "a wrong shape": (lambda given: Plan(given[1].keep[..., :2]), "[2, 2, 2]"),
    "into a dropped row": (folding(first_dropped), "into one that does not"),
    "beyond the table": (folding(lambda v, s: v.xp.full_like(v.positions, 99)[..., None]), "into one that does not"),
    "of a kept row": (
        folding(first_kept, into=lambda into, xp: xp.full_like(into, 6)),
        "folds a row that stays",
    ),
    "a flat into": (folding(first_kept, into=lambda into, xp: into[..., 0]), "needs int64 [batch, heads, rows, M]"),
    "a float into": (folding(first_kept, into=lambda into, xp: xp.astype(into, xp.float32)), "float32"),
    "flat weights": (folding(first_kept, weight=lambda weight, xp: weight[..., 0]), "weight has shape"),
    "deep self-weights": (folding(first_kept, self_weight=lambda own, xp: own[..., None]), "self_weight has shape"),
    "NaN weights": (folding(first_kept, weight=lambda w, xp: w * float("nan")), "NaN or infinite"),
    "infinite self-weights": (folding(first_kept, self_weight=lambda w, xp: w * float("inf")), "NaN or infinite"),
}
COLUMNS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "None": (lambda v: None, "NoneType"),
    "bare arrays": (lambda v: {"x": v.values.sum(-1)}, "mapping of names to Columns"),
    "a wrong shape": (lambda v: {"x": Column(v.values)}, "column 'x'"),
}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
class TestWrongAnswers:
    """A stage that is right in layer 0 and wrong in layer 1 is named, and so is the layer."""

    @staticmethod
    def refused(backend: str, stage: str, **stages: Any) -> str:
        settings: dict[str, Any] = {"schedule": FixedRows(4), "score": Recency(), **stages}
        request = make_request(layers=3, batch=2, prompt=8, steps=0, padding=(0, 3))
        with pytest.raises(PlanError) as caught:
            drive(Policy(prefill=Pipeline(**settings)), request, backend=backend)
        assert stage in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("name", SCORES)
    def test_scores(self, backend: str, name: str) -> None:
        answer, says = SCORES[name]
        message = self.refused(backend, "Answer at layer 1", score=Answer(answer))
        assert says in message
        assert "scores of" in message

    def test_scores_of_another_library(self, backend: str) -> None:
        torch = pytest.importorskip("torch")
        other = torch.ones if backend == "numpy" else np.ones
        assert "ndarray" in self.refused(backend, "Answer at layer 1", score=Answer(lambda v: other(v.shape)))

    @pytest.mark.parametrize("name", SELECTIONS)
    def test_selections(self, backend: str, name: str) -> None:
        answer, says = SELECTIONS[name]
        assert says in self.refused(backend, "Answer at layer 1", select=Answer(answer))

    @pytest.mark.parametrize("name", QUOTAS)
    def test_quotas(self, backend: str, name: str) -> None:
        answer, says = QUOTAS[name]
        assert says in self.refused(backend, "Answer", allocate=Answer(answer))

    @pytest.mark.parametrize("name", PLANS)
    def test_plans(self, backend: str, name: str) -> None:
        answer, says = PLANS[name]
        assert says in self.refused(backend, "Answer at layer 1", merge=Answer(answer))

    @pytest.mark.parametrize("name", COLUMNS)
    def test_columns(self, backend: str, name: str) -> None:
        answer, says = COLUMNS[name]
        assert says in self.refused(backend, "Watch at layer 1", score=Watch(answer))

    @pytest.mark.parametrize(
        "budget",
        [
            0,
            -1,
            2.5,
            4.0,
            float("nan"),
            "4",
            True,
            np.array([4, 0]),
            np.array([4.0, 4.0]),
            [4, 4, 4],
            [[4], [4, 4]],
            {},
        ],
        ids=repr,
    )
    def test_budgets(self, backend: str, budget: Any) -> None:
        message = self.refused(backend, "Answer", schedule=Answer(lambda step: budget))
        assert repr(budget) in message
        assert "each of the 2 batch rows" in message

    def test_a_missing_column_is_named_with_those_there_are(self, backend: str) -> None:
        hint = "pass segments= to the cache."
        score = Answer(lambda view: view.column("segment", needed_by="TextPrior", hint=hint))
        policy = Policy(prefill=Pipeline(schedule=FixedRows(4), score=score))
        with pytest.raises(MissingColumnError) as caught:
            drive(policy, make_request(layers=2), backend=backend)
        assert str(caught.value) == f"TextPrior needs column 'segment'; this cache has: count. Hint: {hint}"
        assert isinstance(caught.value, LookupError)

    def test_infinite_scores_are_no_mistake(self, backend: str) -> None:
        policy = Policy(prefill=Pipeline(schedule=FixedRows(4), score=Answer(lambda v: v.values.sum(-1) * 0 - np.inf)))
        trace = drive(policy, make_request(layers=2, prompt=8, steps=0), backend=backend)
        assert trace.passes[0].tables[1][0][0].positions == [4, 5, 6, 7]

    def test_unchecked_is_unchecked(self, backend: str) -> None:
        policy = Policy(prefill=Pipeline(schedule=FixedRows(4), score=Answer(SCORES["NaN in one place"][0])))
        drive(policy, make_request(layers=2, prompt=8, steps=0), backend=backend, check=False)
        merge = Answer(PLANS["infinite self-weights"][0])
        policy = Policy(prefill=Pipeline(schedule=FixedRows(4), score=Recency(), merge=merge))
        drive(policy, make_request(layers=2, prompt=8, steps=0), backend=backend, check=False)


def test_a_fold_needs_its_weights() -> None:
    keep, into, one = np.ones((1, 1, 1), bool), np.zeros((1, 1, 1, 1), int), np.ones((1, 1, 1))
    for given in ({}, {"weight": one[..., None]}, {"self_weight": one}):
        with pytest.raises(PlanError, match="weight= and self_weight="):
            Plan(keep, into=into, **given)


@pytest.mark.parametrize("given", [("key_scale",), ("value_scale",), ("key_scale", "value_scale")])
def test_a_plan_that_folds_nothing_has_nothing_to_scale(given: tuple[str, ...]) -> None:
    keep, one = np.ones((1, 1, 1), bool), np.ones((1, 1, 1))
    with pytest.raises(PlanError, match="needs into= too: only merged rows are scaled"):
        Plan(keep, **dict.fromkeys(given, one))


class TestPackage:
    def test_importing_it_imports_no_framework(self) -> None:
        code = (
            "import sys, kvpolicy; "
            "print([name for name in ('torch', 'transformers', 'triton', 'kvpolicy_hf') if name in sys.modules])"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == "[]"

    def test_numpy_alone_runs_a_policy_without_torch(self) -> None:
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "import numpy as np\n"
            "from kvpolicy import Pass, Session, backend_by_name, elastic_cache\n"
            "ops = backend_by_name('numpy')\n"
            "session = Session(elastic_cache(rows=3), ops, 1)\n"
            "data = np.ones((1, 2, 6, 4))\n"
            "now = Pass(0, np.arange(6)[None], np.ones((1, 6), bool), np.array([6]), {})\n"
            "session.append(0, data, data, now)\n"
            "session.advance(0, data, 0.5, now)\n"
            "print(session.report().layers[0].rows)\n"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == "3.0"

    def test_all_is_what_there_is(self) -> None:
        public = {
            name
            for name, value in vars(kvpolicy).items()
            if not name.startswith("_") and not isinstance(value, types.ModuleType)
        }
        declared = set(kvpolicy.__all__)
        assert len(declared) == len(kvpolicy.__all__)
        assert public <= declared
        assert all(hasattr(kvpolicy, name) for name in declared)
        modules = {name for name in declared if isinstance(getattr(kvpolicy, name), types.ModuleType)}
        assert modules == {"allocators", "mergers", "recallers", "schedulers", "scorers", "selectors"}

    def test_every_stage_module_declares_what_it_offers(self) -> None:
        for name in ("allocators", "mergers", "recallers", "schedulers", "scorers", "selectors"):
            module = getattr(kvpolicy, name)
            for declared in module.__all__:
                assert getattr(module, declared).__module__.startswith(f"kvpolicy.{name}")

    def test_every_error_is_caught_as_one(self) -> None:
        errors = [value for name in kvpolicy.__all__ if isinstance(value := getattr(kvpolicy, name), type)]
        errors = [value for value in errors if issubclass(value, Exception)]
        assert len(errors) == 7
        assert all(issubclass(error, kvpolicy.KVPolicyError) for error in errors)

    @pytest.mark.parametrize("name", ["x", "Torch", "", None])
    def test_a_backend_that_does_not_exist(self, name: Any) -> None:
        with pytest.raises(kvpolicy.BackendUnavailableError, match="Known: numpy, torch"):
            kvpolicy.backend_by_name(name)

    def test_a_backend_goes_by_the_arrays_type(self) -> None:
        torch = pytest.importorskip("torch")
        assert kvpolicy.backend_for(np.ones(1)).name == "numpy"
        assert kvpolicy.backend_for(torch.ones(1)).name == "torch"
        assert kvpolicy.backend_for(torch.nn.Parameter(torch.ones(1))).name == "torch"
        with pytest.raises(kvpolicy.BackendUnavailableError, match=r"builtins\.list"):
            kvpolicy.backend_for([1.0])

    def test_a_backend_that_is_not_installed_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)  # what `import torch` meets where there is none
        monkeypatch.delitem(sys.modules, "kvpolicy.backends.torch", raising=False)
        with pytest.raises(kvpolicy.BackendUnavailableError) as caught:
            kvpolicy.backend_by_name("torch")
        assert str(caught.value) == (
            "backend='torch' needs torch, which is not installed. Hint: pip install \"kvpolicy[torch]\"."
        )
        assert kvpolicy.backend_by_name("numpy").name == "numpy"
