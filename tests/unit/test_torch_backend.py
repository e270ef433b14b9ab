"""The torch backend against the oracle, verb by verb, on tables that no model would make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kvpolicy import CacheView, Column, Phase, Plan, Step, backend_by_name
from kvpolicy.backends.numpy import NumpyBackend
from kvpolicy.backends.torch import TorchBackend

Arr = np.ndarray[Any, np.dtype[Any]]
ORACLE, OPS = NumpyBackend(), TorchBackend()

# One rounding of a result in each dtype of keys and values; sums are formed in float32 at least.
ROUNDING = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-21, "float64": 2**-48}
DTYPES = st.sampled_from(sorted(ROUNDING))


@dataclass(frozen=True)
class Case:
    """A random table in numpy (keys and values in float64 that the dtype can hold) and the same one in torch."""

    numpy: CacheView
    torch: CacheView
    rng: np.random.Generator


def in_torch(data: Arr, dtype: str | None = None) -> torch.Tensor:
    made = torch.tensor(data)
    return made.to(getattr(torch, dtype)) if dtype else made


def representable(data: Arr, dtype: str) -> Arr:
    rounded: Arr = in_torch(data, dtype).double().numpy()
    return rounded


@st.composite
def cases(draw: st.DrawFn, *, dtypes: st.SearchStrategy[str] = DTYPES, max_rows: int = 12) -> Case:
    """Unordered rows, padding, empty slots; merged counts, a float column that sums and an int column that stays."""
    batch, heads, rows, dim, value_dim = (draw(st.integers(1, most)) for most in (2, 3, max_rows, 5, 5))
    dtype, rng = draw(dtypes), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (batch, heads, rows)
    valid = rng.random(shape) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    positions = np.stack([rng.permutation(3 * rows)[:rows] for _ in range(batch * heads)]).reshape(shape)
    positions[~valid & (rng.random(shape) < 0.5)] = -1
    keys, values = (representable(rng.standard_normal((*shape, width)), dtype) for width in (dim, value_dim))
    columns = {
        "count": Column(np.where(valid, rng.integers(1, 5, shape), 0).astype(np.float32), "sum"),
        "mass": Column(np.where(valid, rng.random(shape), 0), "sum"),
        "segment": Column(rng.integers(0, 3, shape), "keep"),
    }
    registers = {"share": rng.random((batch, heads))}
    mine = CacheView(keys, values, positions, valid, columns, registers, layer=3, num_layers=7)
    theirs = replace(
        mine,
        keys=in_torch(keys, dtype),
        values=in_torch(values, dtype),
        positions=in_torch(positions),
        valid=in_torch(valid),
        columns={name: replace(c, data=in_torch(c.data)) for name, c in columns.items()},
        registers={"share": in_torch(registers["share"])},
    )
    return Case(mine, theirs, rng)


class TestAttentionMass:
    @staticmethod
    def asked(
        case: Case, queries: int, *, groups: int = 1, dtype: str = "float64", count_bias: bool = False
    ) -> tuple[Step, Step]:
        """Both steps. Several queries own the last rows of the table, in order; a single one may stand anywhere."""
        batch, heads, rows = case.numpy.shape
        rng, dim = case.rng, case.numpy.keys.shape[-1]
        asking = representable(2 * rng.standard_normal((batch, heads * groups, queries, dim)), dtype)
        if queries == 1:
            where = rng.integers(0, 3 * rows, (batch, 1))
            real = rng.random((batch, 1)) < 0.8
        else:
            where = np.broadcast_to(np.arange(4 * rows, 4 * rows + queries), (batch, queries))
            real = rng.random((batch, queries)) < 0.7
            for view in (case.numpy, case.torch):
                as_its_own = in_torch if isinstance(view.positions, torch.Tensor) else np.array
                view.positions[..., rows - queries :] = as_its_own(where)[:, None]
                view.valid[..., rows - queries :] = as_its_own(real)[:, None]
                view.columns["count"].data[..., rows - queries :] = as_its_own(real)[:, None]
        seen = np.full(batch, 9)
        mine = Step(Phase.PREFILL, seen, seen, seen, asking, where, real, 0.7, ORACLE, count_bias=count_bias)
        theirs = replace(
            mine,
            queries=in_torch(asking, dtype),
            query_positions=in_torch(np.array(where)),
            query_valid=in_torch(real),
            ops=OPS,
        )
        return mine, theirs

    @given(
        cases(),
        st.integers(1, 12),
        st.integers(1, 3),
        st.booleans(),
        st.sampled_from([None, 0, 1, 2, 5, 99]),
        st.sampled_from(["mean", "max"]),
        st.sampled_from([1, 40, 1 << 22]),
    )
    def test_it_is_the_oracles(
        self, case: Case, queries: int, groups: int, bias: bool, window: int | None, group: Any, chunk: int
    ) -> None:
        dtype = str(case.torch.keys.dtype).removeprefix("torch.")
        mine, theirs = self.asked(case, min(queries, case.numpy.shape[2]), groups=groups, dtype=dtype, count_bias=bias)
        due = ORACLE.attention_mass(case.numpy, mine, window=window, group=group)
        got = TorchBackend(chunk_elements=chunk).attention_mass(case.torch, theirs, window=window, group=group)
        assert got.dtype == (torch.float64 if dtype == "float64" else torch.float32)
        np.testing.assert_allclose(got.numpy(), due, rtol=0, atol=1e-12 if dtype == "float64" else 2e-5)
        assert not got.numpy()[~case.numpy.valid].any()

    @pytest.mark.parametrize("window", [1, 2, 3, 4])
    def test_a_window_counts_valid_queries_under_right_padding_too(self, window: int) -> None:
        keys = np.zeros((1, 1, 4, 1))
        positions, valid = np.arange(4)[None, None], np.array([True, True, False, False])[None, None]
        view = CacheView(keys, keys, positions, valid, {})
        seen = np.array([2])
        step = Step(Phase.PREFILL, seen, seen, seen, keys, positions[:, 0], valid[:, 0], 1.0, ORACLE)
        due = [[[0.5, 0.5, 0, 0]]] if window == 1 else [[[1.5, 0.5, 0, 0]]]
        np.testing.assert_array_equal(ORACLE.attention_mass(view, step, window=window), due)
        view = CacheView(*(in_torch(data) for data in (keys, keys, positions, valid)), {})
        step = Step(
            *(Phase.PREFILL, seen, seen, seen, in_torch(keys), in_torch(positions[:, 0]), in_torch(valid[:, 0])),
            1.0,
            OPS,
        )
        np.testing.assert_array_equal(OPS.attention_mass(view, step, window=window).numpy(), due)

    @pytest.mark.parametrize("window", [None, 40])
    def test_its_memory_is_linear_in_the_prompt(self, window: int | None) -> None:
        tokens, dim, chunk = 512, 8, 8192
        keys = torch.randn(1, 2, tokens, dim)
        places, real = torch.arange(tokens)[None], torch.ones(1, tokens, dtype=torch.bool)
        view = CacheView(keys, keys, places.expand(1, 2, -1), real.expand(1, 2, -1), {})
        seen = np.array([tokens])
        queries = torch.randn(1, 4, tokens, dim)
        step = Step(Phase.PREFILL, seen, seen, seen, queries, places, real, 0.3, OPS)
        whole = TorchBackend().attention_mass(view, step, window=window)
        with Largest() as largest:
            small = TorchBackend(chunk_elements=chunk).attention_mass(view, step, window=window)
        assert 0 < largest.elements <= max(chunk, keys.numel(), queries.numel())
        torch.testing.assert_close(small, whole, rtol=0, atol=1e-4)

    def test_one_query_of_logits_is_the_least_it_holds(self) -> None:
        tokens, chunk = 64, 1
        keys = torch.randn(1, 1, tokens, 1)
        places, real = torch.arange(tokens)[None], torch.ones(1, tokens, dtype=torch.bool)
        view = CacheView(keys, keys, places[None], real[None], {})
        seen = np.array([tokens])
        step = Step(Phase.PREFILL, seen, seen, seen, keys, places, real, 1.0, OPS)
        with Largest() as largest:
            TorchBackend(chunk_elements=chunk).attention_mass(view, step)
        assert largest.elements == tokens


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
        return out


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
    def plan(case: Case, *, targets: int, merge_keys: bool, share: float) -> Plan:
        """Any legal plan: dropped rows fold into some kept rows, or into none, with any weights.

        What the plan says of rows that it does not concern is deliberate nonsense.
        """
        rng, view = case.rng, case.numpy
        keep = (rng.random(view.shape) < share) & view.valid
        if not targets:
            return Plan(keep=keep, registers={"tau": rng.random(view.shape[:2])})
        into = np.full((*view.shape, targets), -1)
        weight = np.full(into.shape, np.nan)
        self_weight = np.full(view.shape, np.nan)
        for b, h in np.ndindex(*view.shape[:2]):
            kept = np.flatnonzero(keep[b, h])
            for s in range(view.shape[2]):
                if keep[b, h, s]:
                    self_weight[b, h, s] = rng.choice([1.0, rng.random()])
                elif view.valid[b, h, s]:
                    for m, n in enumerate(rng.permutation(kept)[:targets]):
                        if rng.random() < 0.6:
                            into[b, h, s, m], weight[b, h, s, m] = n, rng.standard_normal()
        return Plan(keep, into, weight, self_weight, merge_keys, {"tau": rng.random(view.shape[:2])})

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
            {name: in_torch(register) for name, register in plan.registers.items()},
        )

    @given(cases(), st.integers(0, 3), st.booleans(), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 2))
    def test_it_is_the_oracles(self, case: Case, targets: int, merge_keys: bool, share: float, spare: int) -> None:
        plan = self.plan(case, targets=targets, merge_keys=merge_keys, share=share)
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
        plan = self.plan(case, targets=1, merge_keys=True, share=share)
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


def test_it_is_found_by_name_and_prints_as_its_constructor() -> None:
    assert backend_by_name("torch") == OPS
    assert repr(OPS).startswith("TorchBackend(")
    assert OPS.name == "torch"
    assert OPS.host(torch.tensor([1.5], requires_grad=True)).tolist() == [1.5]
