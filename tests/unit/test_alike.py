"""Heads that are known to hold the same tokens in the same slots: what is known is so, and changes no result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from custom_stages import ByHead
from driving import Trace, drive, make_request, same_tables, with_image
from sharing import drive_shared

from kvpolicy import (
    AttentionMass,
    CacheView,
    Clusters,
    ColumnScore,
    EliteMass,
    FixedPoint,
    FixedRows,
    Fold,
    KeyNorm,
    Mean,
    MostSimilar,
    Noise,
    Pipeline,
    PlanError,
    Policy,
    Pooled,
    PostImageMass,
    Quota,
    Recency,
    Scored,
    Selection,
    Step,
    TopK,
    TopRecall,
    WindowMass,
)
from kvpolicy._alike import alike_heads

REQUEST = with_image(
    make_request(seed=5, layers=2, batch=2, heads=4, groups=2, dim=4, prompt=13, steps=5, padding=(0, 3)), 4, 9
)
ALIKE: list[Any] = [
    AttentionMass(heads="mean"),
    ColumnScore("count", heads="mean"),
    EliteMass(window=3, heads="mean"),
    FixedPoint(distance=2),
    Noise(),
    Pooled(AttentionMass(heads="mean"), kernel=3),
    PostImageMass(heads="mean"),
    Recency(),
    WindowMass(window=1, heads="mean"),
]


def both(score: Any, **parts: Any) -> Policy:
    pipeline = Pipeline(schedule=FixedRows(6), score=score, **parts)
    return Policy(prefill=pipeline, decode=pipeline)


def known(trace: Trace) -> list[bool]:
    """What the session believes of each layer; true of its tables wherever it does."""
    for state in trace.session._layers:
        if state.alike:
            view, host = state.store.view(), trace.session.ops.host
            for data in (host(view.valid), np.where(host(view.valid), host(view.positions), -1)):
                assert (data == data[:, :1]).all()
    return [state.alike for state in trace.session._layers]


@dataclass(frozen=True)
class Unaware:
    """The same selection, which says nothing of heads: nothing is known, and everything is looked at."""

    inner: TopK

    def select(self, scored: Scored, quota: Quota, step: Step) -> Selection:
        return self.inner.select(scored, quota, step)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("score", ALIKE, ids=repr)
@pytest.mark.parametrize("select", [TopK(), TopK(first=1, last=1, recent=0.3), TopK(text=True)], ids=repr)
def test_heads_stay_alike_and_results_the_same(score: Any, select: TopK, backend: str) -> None:
    policy = both(score, select=select)
    trace, unaware = (
        drive(policy, REQUEST, backend=backend),
        drive(both(score, select=Unaware(select)), REQUEST, backend=backend),
    )
    assert known(trace) == [True, True]
    assert known(unaware) == [False, False]
    for one, other in zip(trace.passes, unaware.passes, strict=True):
        same_tables(one, other)
    _, whole, _ = drive_shared(policy, REQUEST, 2, backend=backend)
    for one, other in zip(trace.passes, whole.passes, strict=True):
        same_tables(one, other, tolerance=0.0 if backend == "numpy" else 1e-12)


def test_folding_by_head_leaves_heads_alike() -> None:
    trace = drive(both(AttentionMass(heads="mean"), merge=Fold(MostSimilar(), Mean())), REQUEST, backend="torch")
    assert known(trace) == [True, True]


@pytest.mark.parametrize(
    "policy",
    [
        both(AttentionMass()),
        both(KeyNorm()),
        both(Pooled(KeyNorm())),
        both(Noise(), select=Clusters()),
        both(Noise(), allocate=ByHead(((1, 0, 0, -1),) * 2)),
    ],
    ids=repr,
)
def test_heads_that_may_part_are_not_taken_for_alike(policy: Policy) -> None:
    assert known(drive(policy, REQUEST, backend="torch")) == [False, False]


def test_rows_that_come_back_part_them() -> None:
    recalling = both(AttentionMass(heads="mean"), recall=TopRecall(AttentionMass(heads="mean"), rows=2))
    assert known(drive(recalling, REQUEST, backend="torch")) == [False, False]


def test_within_the_budget_nothing_parts_them() -> None:
    roomy = Pipeline(schedule=FixedRows(99), score=AttentionMass())
    assert known(drive(Policy(prefill=roomy, decode=roomy), REQUEST)) == [True, True]


def test_a_new_request_begins_alike() -> None:
    session = drive(both(KeyNorm()), REQUEST).session
    session.clear()
    assert [state.alike for state in session._layers] == [True, True]


def test_batch_rows_that_are_chosen_stay_alike() -> None:
    trace = drive(both(Recency()), REQUEST, backend="torch")
    trace.session.select_batch(np.array([1, 1, 0]))
    assert known(trace) == [True, True]


@dataclass(frozen=True)
class Lying:
    """Says that heads are alike to it, and goes by their number."""

    alike_heads: bool = True

    def score(self, view: CacheView, step: Step) -> Any:
        return view.positions * (1.0 - 2.0 * view.xp.asarray([[[0], [1], [0], [0]]]))

    def select(self, scored: Scored, quota: Quota, step: Step) -> Selection:
        return Selection(step.ops.top_k(self.score(scored.view, step), quota, scored.view))


@pytest.mark.parametrize("policy", [both(Lying()), both(Lying(), select=Lying())], ids=["score", "score and select"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_scorer_that_lies_is_named(policy: Policy, backend: str) -> None:
    with pytest.raises(PlanError, match=r"Lying at layer 0 says alike_heads = True.*Hint: leave alike_heads out"):
        drive(policy, REQUEST, backend=backend)


@dataclass(frozen=True)
class Asked:
    """Notes for how many heads it is asked, by another selector."""

    heads: list[int] = field(default_factory=list)
    alike_heads: bool = True

    def select(self, scored: Scored, quota: Quota, step: Step) -> Selection:
        view = scored.view
        data = [scored.scores, view.keys, view.values, view.positions, view.valid, *view.registers.values()]
        data += [column.data for column in view.columns.values()]
        self.heads.extend(one.shape[1] for one in data)
        return TopK(first=1, text=True).select(scored, quota, step)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_of_heads_that_are_alike_one_is_planned(alike: bool, backend: str) -> None:
    select = Asked(alike_heads=alike)
    traces = [
        drive(both(Recency(), select=stage), REQUEST, backend=backend) for stage in (select, TopK(first=1, text=True))
    ]
    assert set(select.heads) == {1 if alike else REQUEST.keys.shape[2]}
    for mine, yours in zip(*(trace.passes for trace in traces), strict=True):
        same_tables(mine, yours)


def test_a_part_of_the_heads_may_be_all_alike_and_unlike_the_others() -> None:
    """Of two processes neither sees a difference within its own heads."""

    @dataclass(frozen=True)
    class ByProcess:
        alike_heads: bool = True

        def score(self, view: CacheView, step: Step) -> Any:
            return view.positions * (1.0 - 2.0 * step.heads.rank)  # type: ignore[attr-defined]

    with pytest.raises(PlanError, match="ByProcess at layer 0 says alike_heads"):
        drive_shared(both(ByProcess()), REQUEST, 2)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("score", [Recency(), KeyNorm()], ids=repr)
def test_registers_of_a_selection_are_of_all_heads(score: Any, backend: str) -> None:
    policy = Policy(prefill=Pipeline(schedule=FixedRows(6), score=score, select=TopK(first=1, text=True)))
    for state in drive(policy, REQUEST, backend=backend).session._layers:
        view = state.store.view()
        assert view.registers["image"].shape == view.shape[:2]


def test_unchecked_a_plan_is_taken_at_its_word() -> None:
    assert [state.alike for state in drive(both(Lying()), REQUEST, check=False).session._layers] == [True, True]


def test_what_a_policy_says_of_heads() -> None:
    def says(score: Any, select: Any = TopK()) -> bool:  # noqa: B008
        return alike_heads(Pipeline(schedule=FixedRows(2), score=score, select=select))

    assert all(says(score) for score in ALIKE)
    assert not says(replace(ALIKE[0], heads="each"))
    assert not says(Recency(), Clusters())


def test_a_selector_that_lies_of_other_processes_is_named() -> None:
    @dataclass(frozen=True)
    class ByProcess:
        alike_heads: bool = True

        def select(self, scored: Scored, quota: Quota, step: Step) -> Selection:
            turned = scored.scores * (1.0 - 2.0 * step.heads.rank)  # type: ignore[attr-defined]
            return Selection(step.ops.top_k(turned, quota, scored.view))

    with pytest.raises(PlanError, match="ByProcess at layer 0 says alike_heads"):
        drive_shared(both(Recency(), select=ByProcess()), REQUEST, 2)
