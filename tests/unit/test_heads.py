"""Heads shared out among processes: every policy keeps what it keeps where one process holds them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import stock
from driving import Request, drive, make_request, rotary, same_tables, with_image
from sharing import drive_shared, together

from kvpolicy import (
    AdaptiveHeads,
    AttentionMass,
    ByStrengthAndSkew,
    ColumnScore,
    EliteMass,
    FixedRows,
    Fold,
    HeadTable,
    KeepRatio,
    KeyNorm,
    LikePrompt,
    Mean,
    MemoryBudget,
    NearestPosition,
    Pipeline,
    PlanError,
    Policy,
    PostImageMass,
    Session,
    Shared,
    TopK,
    TopRecall,
    Uniform,
    WindowMass,
    backend_by_name,
)

DIM = 4
REQUEST = with_image(
    make_request(seed=3, layers=3, batch=2, heads=4, groups=2, dim=DIM, prompt=13, steps=4, padding=(0, 3)), 4, 9
)
RAGGED = Pipeline(schedule=FixedRows(7), score=WindowMass(window=3), allocate=AdaptiveHeads(floor=0.1))
RECALL = TopRecall(AttentionMass(heads="mean"), rows=2)
ONE_SIDED = Pipeline(schedule=FixedRows(5), score=AttentionMass(), allocate=HeadTable(((1, 1, 0, 0),) * 3))
SPARSE = Pipeline(  # of the image and the tokens before it, the last two heads keep next to nothing
    schedule=FixedRows(6),
    score=AttentionMass(),
    allocate=HeadTable(((2, 2, 1, 1),) * 3),
    select=TopK(first=2, recent=1.0),
)
MEANS = [
    AttentionMass(heads="mean"),
    AttentionMass(heads="mean", reduce="mean"),
    WindowMass(window=3, heads="mean"),
    WindowMass(window=1, heads="mean", keep_window=False),
    PostImageMass(heads="mean"),
    EliteMass(window=4, heads="mean"),
    ColumnScore("count", heads="mean"),
    Shared(AttentionMass(heads="mean")),
    stock.controller(DIM),
]


def both(score: Any, **stages: Any) -> Policy:
    pipeline = Pipeline(schedule=FixedRows(6), score=score, **stages)
    return Policy(prefill=pipeline, decode=pipeline)


POLICIES: dict[str, Policy] = {
    **stock.POLICIES,
    **{repr(score): both(score) for score in (*stock.SCORERS, *MEANS)},
    **{repr(part): both(PostImageMass(), allocate=part) for part in stock.ALLOCATORS},
    **{repr(part): both(AttentionMass(), select=part) for part in stock.SELECTORS},
    **{repr(part): both(AttentionMass(), merge=part) for part in stock.MERGERS},
    **{f"apart: {score!r}": Policy(prefill=RAGGED, decode=replace(RAGGED, score=score)) for score in MEANS},
    "by share": Policy(prefill=RAGGED, decode=replace(RAGGED, schedule=KeepRatio(0.4), allocate=LikePrompt())),
    "compete by the mean": both(AttentionMass(heads="mean"), allocate=AdaptiveHeads()),
    "memory": Policy(prefill=replace(RAGGED, schedule=MemoryBudget(2 * 3 * 4 * 8 * 2 * DIM * 8))),
    "slots": replace(both(AttentionMass(heads="mean")), positions="slots"),
    "slots, recalled": replace(both(AttentionMass(), recall=RECALL), positions="slots"),
    "slots, recalled, apart": Policy(
        prefill=RAGGED,
        decode=replace(RAGGED, score=WindowMass(window=1), recall=TopRecall(KeyNorm(), rows=2)),
        positions="slots",
    ),
    **{
        f"one-sided: {stage!r}": Policy(prefill=ONE_SIDED, decode=replace(ONE_SIDED, score=stage))
        for stage in (EliteMass(window=20), *MEANS)
    },
    "one-sided, then even": Policy(prefill=ONE_SIDED, decode=both(stock.controller(DIM)).decode),
    "other-sided, then even": Policy(
        prefill=replace(ONE_SIDED, allocate=HeadTable(((0, 0, 1, 1),) * 3)), decode=both(stock.controller(DIM)).decode
    ),
    "one-sided: text": Policy(
        prefill=ONE_SIDED,
        decode=Pipeline(schedule=FixedRows(2), score=AttentionMass(), select=TopK(text=True)),
    ),
    "one-sided: elite": Policy(
        prefill=SPARSE, decode=Pipeline(schedule=FixedRows(1), score=EliteMass(window=20, threshold=0.0))
    ),
    "one-sided: skew": Policy(prefill=ONE_SIDED, decode=both(AttentionMass(), allocate=ByStrengthAndSkew()).decode),
    "recalled, apart": Policy(prefill=RAGGED, decode=replace(RAGGED, score=AttentionMass(), recall=RECALL)),
    "recalled, merged": both(
        stock.controller(DIM),
        recall=TopRecall(stock.controller(DIM), rows=2),
        merge=Fold(NearestPosition(last=2), Mean()),
        allocate=LikePrompt(),
    ),
}


def request_for(policy: Policy) -> Request:
    """Four heads in a layer, or as many as a table has."""
    heads = [len(part.table[0]) for part in stock.parts(policy) if isinstance(part, HeadTable)]
    size = max(heads, default=4)
    cut = (data[:, :, : data.shape[2] * size // 4] for data in (REQUEST.queries, REQUEST.keys, REQUEST.values))
    return replace(REQUEST, **dict(zip(("queries", "keys", "values"), cut, strict=True)))


ON_NUMPY = [*stock.POLICIES, *(f"apart: {score!r}" for score in MEANS[:2])]  # which refuses to read beyond an array
CASES = [*((name, "torch") for name in POLICIES), *((name, "numpy") for name in ON_NUMPY)]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_shared_heads_keep_what_they_keep_in_one_process(name: str, backend: str) -> None:
    policy = POLICIES[name]
    request = request_for(policy)
    settings = {"backend": backend, "rotate": rotary}
    alone = drive(policy, request, **settings)
    traces, whole, _ = drive_shared(policy, request, 2, **settings)
    for one, other in zip(alone.passes, whole.passes, strict=True):
        same_tables(one, other, tolerance=1e-6)
        np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-6, atol=1e-6)
    reports = [trace.session.report() for trace in traces]
    there = alone.session.report()
    assert [sum(report.evicted for report in reports), sum(report.merged for report in reports)] == [
        there.evicted,
        there.merged,
    ]
    for key in ("recalled", "exceeded", "full_kv_bytes"):
        assert sum(getattr(report, key) for report in reports) == getattr(there, key)


def test_processes_with_one_head_each() -> None:
    policy = both(AttentionMass(heads="mean"), allocate=AdaptiveHeads())
    alone = drive(policy, REQUEST)
    _, whole, _ = drive_shared(policy, REQUEST, 4)
    same_tables(alone.passes[-1], whole.passes[-1], tolerance=1e-6)


@pytest.mark.parametrize("name", ["h2o", "snapkv", "streaming_llm", "k_norm", "pyramid_kv", "full"])
def test_what_is_per_head_needs_no_meeting(name: str) -> None:
    _, _, calls = drive_shared(POLICIES[name], REQUEST, 2, check=False)
    assert calls == 0


def test_a_policy_that_combines_heads_meets_only_where_it_does() -> None:
    policy = Policy(prefill=Pipeline(schedule=FixedRows(6), score=AttentionMass(heads="mean"), select=TopK()))
    _, _, calls = drive_shared(policy, REQUEST, 2, check=False)
    assert calls == len(REQUEST.keys)  # the scores of each layer, once: that the heads are alike is known


def test_a_quota_of_some_heads_only_is_refused() -> None:
    class Own:
        whole_model = False

        def allocate(self, budget: Any, layers: Any, step: Any) -> Any:
            return [np.repeat(budget[:, None], layer.view.shape[1], axis=1) for layer in layers]

    policy = Policy(prefill=Pipeline(schedule=FixedRows(6), score=AttentionMass(), allocate=Own()))
    with pytest.raises(PlanError, match=r"\[batch, heads\] = \[2, 4\], of all heads of the layer: Step.heads"):
        drive_shared(policy, REQUEST, 2)


def test_padding_alone_has_no_rows_to_bring_together() -> None:
    request = replace(REQUEST, padding=(6, 6), prompt=9)
    chunks = (6, 3)  # the first chunk is padding in every batch row
    policy = both(WindowMass(window=2, heads="mean"))
    alone = drive(policy, request, chunks=chunks)
    _, whole, _ = drive_shared(policy, request, 2, chunks=chunks)
    same_tables(alone.passes[-1], whole.passes[-1], tolerance=1e-6)


def test_taking_tokens_back() -> None:
    def cropped(heads: Any = None) -> list[Any]:
        kept = {} if heads is None else {"heads": heads}
        own = heads.own if heads is not None else np.asarray
        cut = {key: np.stack([own(layer) for layer in getattr(REQUEST, key)]) for key in ("queries", "keys", "values")}
        session = Session(Policy(), backend_by_name("torch"), 3, **kept)
        drive(Policy(), replace(REQUEST, **cut), session=session)
        session.crop(14)
        return [layer.held.tolist() for layer in session._layers]

    shares, _ = together(2, cropped)
    assert shares == [cropped()] * 2


def test_what_is_known_ahead_is_a_quota_of_all_heads() -> None:
    class Waits:
        """Uniform without its second face, so that `allocate` is asked."""

        whole_model = True
        allocate = staticmethod(Uniform().allocate)

    policy = Policy(prefill=Pipeline(schedule=FixedRows(6), score=AttentionMass(), allocate=Waits()))
    alone = drive(policy, REQUEST)
    _, whole, _ = drive_shared(policy, REQUEST, 2)
    same_tables(alone.passes[-1], whole.passes[-1], tolerance=1e-6)


def test_a_share_says_what_is_its_own() -> None:
    numbers = np.arange(8).reshape(1, 8)
    shares, _ = together(2, lambda share: (share.own(numbers), share.all(share.own(numbers))))
    assert [own.tolist() for own, _ in shares] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert all((everything == numbers).all() for _, everything in shares)
