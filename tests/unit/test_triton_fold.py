"""The kernels of compaction against the oracle, under Triton's interpreter where there is no GPU.

Chunks are of four rows, so that a table of twelve has several, blocks of two survivors, and two rows are a crowd.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import ORACLE, ROUNDING, Case, cases, in_torch, some_plan

from kvpolicy import CacheView, Column, Plan
from kvpolicy.backends.torch import TorchBackend

pytest.importorskip("triton")

from kvpolicy.backends.triton import TritonBackend
from kvpolicy.backends.triton.kernels.fold import Folding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = TritonBackend(folding=Folding(2, 4, 1, crowd=2))
SERVED = st.sampled_from(["float16", "bfloat16", "float32"])
Arr = np.ndarray[Any, np.dtype[Any]]


def on_device(plan: Plan) -> Plan:
    def held(data: Arr | None) -> Any:
        made = None if data is None else in_torch(data).to(DEVICE)
        return made.float() if made is not None and made.is_floating_point() else made

    names = ("keep", "into", "weight", "self_weight", "key_scale", "value_scale")
    registers = {name: in_torch(data) for name, data in plan.registers.items()}
    return replace(plan, **{name: held(getattr(plan, name)) for name in names}, registers=registers)


def laid(view: CacheView) -> CacheView:
    """Keys and values as models lay them: a head's rows are not next to each other."""
    keys, values = (data.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2) for data in (view.keys, view.values))
    columns = {name: replace(column, data=column.data.to(DEVICE)) for name, column in view.columns.items()}
    places = {"positions": view.positions.to(DEVICE), "valid": view.valid.to(DEVICE)}
    return replace(view, keys=keys, values=values, columns=columns, **places)


def most_kept(plan: Plan) -> int:
    return max(int(np.asarray(plan.keep).sum(-1).max()), 1)


def holds(case: Case, plan: Plan, rows: int, backend: TritonBackend = SMALL) -> CacheView:
    """Compact, and compare with the oracle; what is of no concern holds NaN."""
    due = ORACLE.compact(case.numpy, plan, rows)
    view = laid(case.torch)
    # What neither stays nor folds may hold anything.
    idle = ~plan.keep if plan.into is None else ~plan.keep & (plan.into < 0).all(-1)
    view.keys[in_torch(idle)], view.values[in_torch(idle)] = torch.nan, torch.nan
    got = backend.compact(view, on_device(plan), rows)
    dtype = case.torch.keys.dtype
    tolerance = ROUNDING[str(dtype).removeprefix("torch.")]
    assert got.positions.tolist() == due.positions.tolist()
    assert got.valid.tolist() == due.valid.tolist()
    assert (got.valid.dtype, got.positions.dtype) == (torch.bool, torch.int64)
    assert (got.keys.dtype, got.values.dtype) == (dtype, dtype)
    for mine, theirs in ((got.keys, due.keys), (got.values, due.values)):
        np.testing.assert_allclose(mine.double().cpu().numpy(), theirs, rtol=tolerance, atol=8 * tolerance)
    for name, column in due.columns.items():
        assert got.columns[name].on_merge == column.on_merge
        assert got.columns[name].data.dtype == case.torch.columns[name].data.dtype
        np.testing.assert_allclose(got.columns[name].data.cpu().numpy(), column.data, rtol=1e-6)
    assert {n: r.tolist() for n, r in got.registers.items()} == {n: r.tolist() for n, r in due.registers.items()}
    assert (got.layer, got.num_layers) == (case.numpy.layer, case.numpy.num_layers)
    return got


@settings(max_examples=6)
@given(cases(dtypes=SERVED), st.integers(0, 2), st.booleans(), st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
def test_it_is_the_oracles(case: Case, targets: int, merge_keys: bool, share: float, scaled: bool) -> None:
    plan = some_plan(case, targets=targets, merge_keys=merge_keys, share=share, scaled=scaled)
    rows = min(most_kept(plan) + int(case.rng.integers(0, 3)), case.numpy.shape[2])
    holds(case, plan, rows)


def table(rows: int, *, ordered: bool, dtype: str = "float32", padding: int = 0, seed: int = 0) -> Case:
    """One of 1 x 2 heads; the rows of the first lie in order of arrival, or those of none do."""
    rng = np.random.default_rng(seed)
    positions = np.broadcast_to(np.arange(rows), (1, 2, rows)).copy()
    if not ordered:
        positions = np.stack([rng.permutation(rows) for _ in range(2)])[None]
    valid = positions >= padding
    keys, values = (in_torch(rng.standard_normal((1, 2, rows, dim)), dtype) for dim in (8, 5))
    columns = {"count": Column(valid.astype(np.float32), "sum"), "segment": Column(positions % 3, "keep")}
    mine = CacheView(keys.double().numpy(), values.double().numpy(), positions, valid, columns)
    theirs = replace(
        mine,
        keys=keys,
        values=values,
        positions=in_torch(positions),
        valid=in_torch(valid),
        columns={name: replace(column, data=in_torch(column.data)) for name, column in columns.items()},
    )
    return Case(mine, theirs, rng)


def into_the_nearest(case: Case, keep: Arr) -> Plan:
    """What `Fold(NearestPosition(), Mean())` plans."""
    view = case.numpy
    into = np.where(keep, -1, ORACLE.nearest_position(view, keep))[..., None]
    members = 1 + ORACLE.segment_sum(np.ones(into.shape), into)
    at = np.maximum(into[..., 0], 0)
    weight = np.where(into >= 0, np.take_along_axis(1 / members, at, -1)[..., None], np.nan)
    return Plan(keep, into, weight, np.where(keep, 1 / members, np.nan))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("rows", "padding"), [(37, 0), (41, 9)])
def test_the_mean_of_the_nearest(ordered: bool, rows: int, padding: int) -> None:
    case = table(rows, ordered=ordered, padding=padding, dtype="bfloat16")
    keep = (case.rng.random(case.numpy.shape) < 0.2) & case.numpy.valid
    keep[0, 1] = False  # a head that keeps nothing
    holds(case, into_the_nearest(case, keep), most_kept(Plan(keep)))


def test_all_into_one_row_and_all_blocks_give_the_same() -> None:
    case = table(23, ordered=True)
    keep = case.numpy.positions == 11
    plan = into_the_nearest(case, keep)
    for folding in (Folding(1, 8, 1), Folding(8, 32, 1)):
        holds(case, plan, 1, TritonBackend(folding=folding))


# Crowds that a chunk may have two of; none; several in a block that is a whole table; every row one, of many chunks.
CROWDS = [Folding(2, 4, 1, 2), Folding(2, 4, 1, 5), Folding(16, 16, 1, 4), Folding(4, 2, 1, 1)]


@pytest.mark.parametrize("folding", CROWDS, ids=str)
@pytest.mark.parametrize("ordered", [True, False])
def test_the_last_survivor_takes_the_tail(folding: Folding, ordered: bool) -> None:
    case = table(43, ordered=ordered, padding=5, dtype="bfloat16")
    keep = (case.numpy.positions < 14) & (case.numpy.positions % 2 == 0) & case.numpy.valid
    holds(case, into_the_nearest(case, keep), 7, TritonBackend(folding=folding))


@pytest.mark.parametrize("folding", CROWDS, ids=str)
@pytest.mark.parametrize(("targets", "merge_keys"), [(1, True), (2, True), (2, False)])
def test_some_survivors_take_most(folding: Folding, targets: int, merge_keys: bool) -> None:
    case = table(45, ordered=True, padding=3)
    view, rng = case.numpy, case.rng
    keep = np.isin(view.positions, [4, 5, 6, 20, 40])
    plan = some_plan(case, targets=targets, merge_keys=merge_keys, share=0, scaled=True)
    into = np.full((*view.shape, targets), -1)
    for place in np.argwhere(view.valid & ~keep & (rng.random(view.shape) < 0.9)):
        # Two that share a block, others seldom; rows are where they arrived.
        into[tuple(place)] = rng.choice([4, 5, 6, 20, 40], targets, replace=False, p=[0.45, 0.4, 0.05, 0.05, 0.05])
    weight = np.where(into >= 0, rng.random(into.shape) / 8, np.nan)
    plan = replace(plan, keep=keep, into=into, weight=weight, self_weight=np.where(keep, 0.5, np.nan))
    holds(case, plan, 6, TritonBackend(folding=folding))


@pytest.mark.parametrize("folding", CROWDS, ids=str)
def test_what_is_not_finite_comes_to_its_own_target_alone(folding: Folding) -> None:
    case = table(16, ordered=True)
    case.numpy.keys[:, :, 9] = np.nan
    case.torch.keys[:, :, 9] = torch.nan
    keep = case.numpy.positions < 3
    into = np.where(keep, -1, case.numpy.positions % 2)[..., None]
    plan = Plan(keep, into, np.full(into.shape, 0.25), np.full(keep.shape, 0.5))
    got = holds(case, plan, 3, TritonBackend(folding=folding))
    assert got.keys.isnan().any(-1).tolist() == [[[False, True, False]] * 2]


def test_columns_of_all_dtypes_are_one_launch_and_none_are_none() -> None:
    case = table(19, ordered=True)
    whole = np.arange(38).reshape(1, 2, 19)
    columns = {dtype: Column(whole.astype(dtype), "sum") for dtype in ("float64", "int64", "float32")}
    plan = into_the_nearest(case, case.numpy.positions % 8 == 1)
    for some in (columns, {}):
        theirs = {name: replace(column, data=in_torch(column.data)) for name, column in some.items()}
        mine = replace(case.numpy, columns=some)
        holds(Case(mine, replace(case.torch, columns=theirs), case.rng), plan, 3)


def test_more_chunks_than_are_looked_at_together() -> None:
    case = table(35, ordered=False)
    keep = case.rng.random(case.numpy.shape) < 0.1
    holds(case, into_the_nearest(case, keep), most_kept(Plan(keep)), TritonBackend(folding=Folding(2, 2, 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_row_that_nothing_folds_into_keeps_its_bits(dtype: str) -> None:
    case = table(9, ordered=True, dtype=dtype)
    case.torch.keys[0, 0, 0, :4] = torch.tensor([-0.0, torch.inf, torch.nan, 1.0])
    keep = np.isin(case.numpy.positions, [0, 4, 8])
    into = np.where(case.numpy.positions == 5, 4, -1)[..., None]
    plan = Plan(keep, into, np.ones(into.shape), np.ones(keep.shape))
    got = SMALL.compact(laid(case.torch), on_device(plan), 3)
    for whole, mine in ((case.torch.keys, got.keys.cpu()), (case.torch.values, got.values.cpu())):
        for slot, row in ((0, 0), (2, 8)):
            same = (data.contiguous().view(torch.uint8) for data in (mine[:, :, slot], whole[:, :, row]))
            assert torch.equal(*same)
        torch.testing.assert_close(mine[:, :, 1], (whole[:, :, 4].float() + whole[:, :, 5].float()).to(whole.dtype))


def test_a_fold_is_formed_in_float32_whatever_the_rows_are() -> None:
    keys = torch.tensor([[2048.0, -60000.0], [1.0, 60000.0], [1.0, 0.0]], dtype=torch.float16)[None, None]
    view = CacheView(keys, keys, torch.arange(3)[None, None], torch.ones(1, 1, 3, dtype=torch.bool), {})
    plan = Plan(
        keep=torch.tensor([[[True, False, False]]]),
        into=torch.tensor([[[[-1, -1], [0, 0], [0, -1]]]]),
        weight=torch.tensor([[[[0.0, 0.0], [2.0, -1.0], [1.0, 0.0]]]]),
        self_weight=torch.ones(1, 1, 3),
    )
    plan = replace(plan, **{n: getattr(plan, n).to(DEVICE) for n in ("keep", "into", "weight", "self_weight")})
    assert SMALL.compact(laid(view), plan, 1).keys[0, 0, 0].tolist() == [2050.0, 0.0]


def test_it_is_deterministic_and_leaves_the_table_alone() -> None:
    case = table(29, ordered=False)
    plan = on_device(into_the_nearest(case, case.rng.random(case.numpy.shape) < 0.3))
    view = laid(case.torch)
    before = view.keys.clone(), view.positions.clone()
    one, other = (SMALL.compact(view, plan, 29) for _ in range(2))
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.values, other.values)
    assert torch.equal(view.keys, before[0])
    assert torch.equal(view.positions, before[1])


def test_what_the_kernels_do_not_serve_is_the_torch_backends() -> None:
    case = table(9, ordered=True, dtype="float64")
    plan = on_device(into_the_nearest(case, case.numpy.positions % 4 == 0))
    mine, theirs = (backend.compact(laid(case.torch), plan, 3) for backend in (SMALL, TorchBackend()))
    assert mine.keys.dtype == torch.float64
    torch.testing.assert_close(mine.keys, theirs.keys, rtol=1e-14, atol=1e-14)  # a GPU scatters in any order
    none = replace(plan, keep=torch.zeros_like(plan.keep), into=torch.full_like(plan.into, -1))
    assert SMALL.compact(laid(case.torch), none, 0).shape == (1, 2, 0)
