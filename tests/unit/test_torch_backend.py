"""The torch backend against the oracle, verb by verb, on tables that no model would make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tables import DTYPES, OPS, ORACLE, ROUNDING, Case, cases, in_torch, representable, some_plan

from kvpolicy import CacheView, Plan, backend_by_name


class TestTopK:
    @given(cases(), st.sampled_from(["float16", "bfloat16", "float32", "float64"]), st.booleans(), st.booleans())
    def test_it_is_the_oracles(self, case: Case, dtype: str, tied: bool, on_host: bool) -> None:
        shape = case.numpy.shape
        scores = case.rng.integers(-2, 3, shape).astype(float) if tied else case.rng.standard_normal(shape)
        for infinite in (-np.inf, np.inf):
            scores[case.rng.random(shape) < 0.15] = infinite
        scores = representable(scores, dtype)
        quota = case.rng.integers(0, shape[2] + 2, shape[:2])
        keep = OPS.top_k(in_torch(scores, dtype), quota if on_host else in_torch(quota), case.torch)
        assert keep.dtype == torch.bool
        assert keep.tolist() == ORACLE.top_k(scores, quota, case.numpy).tolist()

    @given(cases(), DTYPES, st.sampled_from([0, 1, 2]), st.booleans())
    def test_a_promise_changes_nothing(self, case: Case, dtype: str, surplus: int, on_host: bool) -> None:
        shape = case.numpy.shape
        scores = case.rng.integers(-1, 2, shape).astype(float)
        for infinite in (-np.inf, np.inf):
            scores[case.rng.random(shape) < 0.2] = infinite
        scores = representable(scores, dtype)
        held = case.numpy.valid.sum(-1)
        quota = np.maximum(held - case.rng.integers(-1, surplus + 1, shape[:2]), 0)  # some heads have rows to spare
        given = quota if on_host else in_torch(quota)
        keep = OPS.top_k(in_torch(scores, dtype), given, case.torch, surplus=surplus)
        assert keep.dtype == torch.bool
        assert keep.tolist() == ORACLE.top_k(scores, quota, case.numpy, surplus=surplus).tolist()

    @given(cases(), st.integers(0, 3), st.booleans(), st.sampled_from([None, 0, 1]))
    def test_ends_that_are_protected(self, case: Case, first: int, per_head: bool, surplus: int | None) -> None:
        shape = case.numpy.shape
        scores, held = case.rng.integers(-1, 2, shape).astype(float), case.numpy.valid.sum(-1)
        last = case.rng.integers(0, 4, shape[:2]) if per_head else int(case.rng.integers(0, 4))
        quota = case.rng.integers(0, shape[2] + 2, shape[:2])
        if surplus is not None:
            quota = np.maximum(held - case.rng.integers(0, surplus + 1, shape[:2]), 0)
        given = in_torch(last) if isinstance(last, np.ndarray) else last
        keep = OPS.top_k(in_torch(scores), quota, case.torch, surplus=surplus, first=first, last=given)
        assert keep.tolist() == ORACLE.top_k(scores, quota, case.numpy, first=first, last=last).tolist()
        gone = case.numpy.valid & ~keep.numpy()
        rank = ORACLE.arrival_rank(case.numpy)
        end = np.broadcast_to(np.asarray(last)[..., None] if per_head else last, (*shape[:2], 1))
        assert not (gone & ((rank < first) | (rank >= held[..., None] - end))).any()

    @pytest.mark.parametrize("surplus", [0, 1])
    def test_what_it_promises_is_no_window_on_the_table(self, surplus: int) -> None:
        valid = torch.ones(1, 1, 3, dtype=torch.bool)
        view = CacheView(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), torch.arange(3)[None, None], valid, {})
        keep = OPS.top_k(torch.zeros(1, 1, 3), np.full((1, 1), 3 - surplus), view, surplus=surplus)
        valid.zero_()
        assert keep.sum() == 3 - surplus

    def test_unchecked_scores_that_are_nan_keep_as_many(self) -> None:
        valid = torch.tensor([[[False, True, True]]])
        view = CacheView(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), torch.arange(3)[None, None], valid, {})
        keep = OPS.top_k(torch.full((1, 1, 3), torch.nan), np.ones((1, 1), np.int64), view, surplus=1)
        assert keep.tolist() == [[[False, False, True]]]

    @given(cases())
    def test_it_is_equivariant_under_shuffles_of_rows_and_heads(self, case: Case) -> None:
        batch, heads, rows = case.numpy.shape
        scores = in_torch(case.rng.integers(0, 3, (batch, heads, rows)).astype(float))
        quota = case.rng.integers(0, rows + 1, (batch, heads))
        r, h = case.rng.permutation(rows), case.rng.permutation(heads)
        view = case.torch
        unlike = replace(view, positions=torch.where(view.valid, view.positions, -1))
        moved = replace(unlike, positions=unlike.positions[:, h][..., r], valid=view.valid[:, h][..., r])
        straight = OPS.top_k(scores, quota, unlike)[:, h][..., r]
        assert torch.equal(OPS.top_k(scores[:, h][..., r], quota[:, h], moved), straight)


@given(cases())
def test_arrival_rank(case: Case) -> None:
    assert OPS.arrival_rank(case.torch).tolist() == ORACLE.arrival_rank(case.numpy).tolist()


@given(cases())
def test_what_was_counted_once_is_not_taken_for_other_rows(case: Case) -> None:
    view, rows = case.torch, case.numpy.valid & (case.numpy.positions % 2 == 0)
    assert OPS.arrival_rank(view) is OPS.arrival_rank(view)
    few = replace(view, valid=in_torch(rows))
    assert OPS.arrival_rank(few).tolist() == ORACLE.arrival_rank(replace(case.numpy, valid=rows)).tolist()


@given(cases())
def test_a_rank_that_is_known_holds_until_rows_are_left_out(case: Case) -> None:
    for ops, view in ((OPS, case.torch), (ORACLE, case.numpy)):
        known = replace(view, rank=ops.arrival_rank(view) + 100, alike=True)
        assert ops.arrival_rank(known) is known.rank
        rows = view.valid & (view.positions % 2 == 0)
        few, counted = known.only(rows), replace(view, valid=rows)
        assert (few.rank, few.alike) == (None, False)
        assert few.valid.tolist() == counted.valid.tolist()
        assert ops.arrival_rank(few).tolist() == ops.arrival_rank(counted).tolist()


@given(cases(), st.sampled_from([0.0, 0.2, 0.7, 1.0]))
def test_nearest_position(case: Case, share: float) -> None:
    keep = (case.rng.random(case.numpy.shape) < share) & case.numpy.valid
    got = OPS.nearest_position(case.torch, in_torch(keep))
    assert got.dtype == torch.int64
    assert got.tolist() == ORACLE.nearest_position(case.numpy, keep).tolist()


@given(cases(), st.integers(1, 3))
def test_segment_sum(case: Case, targets: int) -> None:
    shape = (*case.numpy.shape, targets)
    index = case.rng.integers(-1, shape[2], shape)
    data = case.rng.standard_normal(shape)
    got = OPS.segment_sum(in_torch(data), in_torch(index))
    np.testing.assert_allclose(got.numpy(), ORACLE.segment_sum(data, index), rtol=1e-12, atol=1e-12)


class TestCompact:
    @staticmethod
    def in_torch(plan: Plan, dtype: torch.dtype) -> Plan:
        if plan.into is None or plan.weight is None or plan.self_weight is None:
            return Plan(in_torch(plan.keep), registers={n: in_torch(r) for n, r in plan.registers.items()})
        return Plan(
            in_torch(plan.keep),
            in_torch(plan.into),
            in_torch(plan.weight).to(dtype),
            in_torch(plan.self_weight).to(dtype),
            plan.merge_keys,
            *(None if scale is None else in_torch(scale).to(dtype) for scale in (plan.key_scale, plan.value_scale)),
            {name: in_torch(register) for name, register in plan.registers.items()},
        )

    @given(
        cases(), st.integers(0, 3), st.booleans(), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 2), st.booleans()
    )
    def test_it_is_the_oracles(
        self, case: Case, targets: int, merge_keys: bool, share: float, spare: int, scaled: bool
    ) -> None:
        plan = some_plan(case, targets=targets, merge_keys=merge_keys, share=share, scaled=scaled)
        dtype = case.torch.keys.dtype
        tolerance = ROUNDING[str(dtype).removeprefix("torch.")]
        rows = min(max(int(plan.keep.sum(-1).max()), 1) + spare, case.numpy.shape[2])
        due = ORACLE.compact(case.numpy, plan, rows)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        got = OPS.compact(case.torch, self.in_torch(plan, wide), rows)

        assert got.positions.tolist() == due.positions.tolist()
        assert got.valid.tolist() == due.valid.tolist()
        assert (got.keys.dtype, got.values.dtype) == (dtype, dtype)
        for mine, theirs in ((got.keys, due.keys), (got.values, due.values)):
            np.testing.assert_allclose(mine.double().numpy(), theirs, rtol=tolerance, atol=8 * tolerance)
        assert got.columns.keys() == due.columns.keys()
        for name, column in due.columns.items():
            assert got.columns[name].on_merge == column.on_merge
            assert got.columns[name].data.dtype == case.torch.columns[name].data.dtype
            np.testing.assert_allclose(got.columns[name].data.numpy(), column.data, rtol=1e-6)
        assert {n: r.tolist() for n, r in got.registers.items()} == {n: r.tolist() for n, r in due.registers.items()}
        assert (got.layer, got.num_layers) == (3, 7)

    @given(cases(), st.sampled_from([0.3, 0.6]))
    def test_a_row_that_nothing_folds_into_keeps_its_bits(self, case: Case, share: float) -> None:
        plan = some_plan(case, targets=1, merge_keys=True, share=share)
        assert plan.into is not None
        plan = replace(plan, self_weight=np.ones(case.numpy.shape))
        rows = max(int(plan.keep.sum(-1).max()), 1)
        out = OPS.compact(case.torch, self.in_torch(plan, torch.float32), rows)
        for b, h in np.ndindex(*case.numpy.shape[:2]):
            reached = set(plan.into[b, h].ravel().tolist())
            kept = sorted(np.flatnonzero(plan.keep[b, h]), key=lambda n: case.numpy.positions[b, h, n])
            for slot, n in enumerate(kept):
                if n not in reached:
                    for whole, mine in ((case.torch.keys, out.keys), (case.torch.values, out.values)):
                        same = whole[b, h, n].view(torch.uint8), mine[b, h, slot].view(torch.uint8)
                        assert torch.equal(*same)

    def test_a_fold_is_formed_in_float32_whatever_the_rows_are(self) -> None:
        # In float16 2048 + 1 + 1 stays 2048, and 2 * 60000 is infinite.
        keys = torch.tensor([[2048.0, -60000.0], [1.0, 60000.0], [1.0, 0.0]], dtype=torch.float16)[None, None]
        view = CacheView(keys, keys, torch.arange(3)[None, None], torch.ones(1, 1, 3, dtype=torch.bool), {})
        plan = Plan(
            keep=torch.tensor([[[True, False, False]]]),
            into=torch.tensor([[[[-1, -1], [0, 0], [0, -1]]]]),
            weight=torch.tensor([[[[0.0, 0.0], [2.0, -1.0], [1.0, 0.0]]]]),
            self_weight=torch.ones(1, 1, 3),
        )
        assert OPS.compact(view, plan, 1).keys[0, 0, 0].tolist() == [2050.0, 0.0]

    def test_a_fold_longer_than_a_chunk(self) -> None:
        rows = 4096 + 7
        keys = torch.ones(1, 1, rows, 1, dtype=torch.float64)
        into = torch.zeros(1, 1, rows, 1, dtype=torch.int64)
        into[..., 0, :] = -1
        keep = into[..., 0] < 0
        view = CacheView(keys, keys, torch.arange(rows)[None, None], torch.ones_like(keep), {})
        plan = Plan(keep, into, torch.ones(1, 1, rows, 1), torch.ones(1, 1, rows))
        assert OPS.compact(view, plan, 1).values.item() == rows


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_comes_from_the_host_is_a_copy_in_the_dtype_named(dtype: str) -> None:
    data = np.arange(6.0).reshape(2, 3)
    made = OPS.from_host(data.T, dtype=dtype, device="cpu")  # not contiguous
    assert (made.dtype, made.is_contiguous()) == (getattr(torch, dtype), True)
    assert made.tolist() == data.T.tolist()
    data[:] = 7.0
    assert OPS.host(made).tolist() == [[0, 3], [1, 4], [2, 5]]  # nobody's memory but its own
    assert OPS.host(made).dtype == ("float32" if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("dtype", ["bool", "int64", "float32", "float64"])
def test_what_comes_from_the_host_keeps_its_own_dtype(dtype: str) -> None:
    made = OPS.from_host(np.ones((2, 0), dtype))
    assert (made.dtype, made.shape, made.device.type) == (getattr(torch, dtype), (2, 0), "cpu")


def test_it_is_found_by_name_and_prints_as_its_constructor() -> None:
    assert backend_by_name("torch") == OPS
    assert repr(OPS).startswith("TorchBackend(")
    assert OPS.name == "torch"
    assert OPS.host(torch.tensor([1.5], requires_grad=True)).tolist() == [1.5]
