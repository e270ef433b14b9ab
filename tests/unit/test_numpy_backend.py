"""The oracle against examples small enough to work out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvpolicy._errors import BackendUnavailableError, CacheError, PlanError
from kvpolicy._plan import Plan
from kvpolicy._protocols import Backend, Store
from kvpolicy._step import Phase, Step
from kvpolicy._types import CacheView, Column, Rows
from kvpolicy.backends.numpy import NumpyBackend

Arr = np.ndarray[Any, np.dtype[Any]]
OPS = NumpyBackend()
LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)


def table(
    keys: list[list[float]], *, positions: list[int] | None = None, valid: list[bool] | None = None, **columns: Any
) -> CacheView:
    """One batch row and one head; values are 10 * keys."""
    rows = len(keys)
    k = np.array(keys, dtype=np.float32).reshape(1, 1, rows, -1)
    alive = np.array([True] * rows if valid is None else valid).reshape(1, 1, rows)
    count = Column(alive.astype(np.float32), on_merge="sum")
    return CacheView(
        keys=k,
        values=10 * k,
        positions=np.array(range(rows) if positions is None else positions).reshape(1, 1, rows),
        valid=alive,
        columns={"count": count, **columns},
        layer=2,
        num_layers=5,
    )


def heads(*views: CacheView) -> CacheView:
    """These one-head tables as the heads of one."""
    first = views[0]
    return replace(
        first,
        keys=np.concatenate([v.keys for v in views], axis=1),
        values=np.concatenate([v.values for v in views], axis=1),
        positions=np.concatenate([v.positions for v in views], axis=1),
        valid=np.concatenate([v.valid for v in views], axis=1),
        columns={
            name: replace(c, data=np.concatenate([v.columns[name].data for v in views], axis=1))
            for name, c in first.columns.items()
        },
    )


def one_head(*data: Any) -> Arr:
    """[1, 1, S] (or [1, 1, S, M])."""
    return np.array(data)[None, None]


def asking(
    queries: Any,
    positions: list[int],
    *,
    valid: list[bool] | None = None,
    scale: float = 1.0,
    count_bias: bool = False,
) -> Step:
    """A pass of one batch row; ``queries`` is [Hq, Q, D]."""
    seen = np.array([max(positions) + 1])
    return Step(
        phase=Phase.PREFILL,
        seen=seen,
        prompt=seen,
        prompt_kept=np.zeros((1, 1), np.int64),
        queries=np.array(queries, dtype=np.float32)[None],
        query_positions=np.array([positions]),
        query_valid=np.array([[True] * len(positions) if valid is None else valid]),
        scale=scale,
        ops=OPS,
        count_bias=count_bias,
    )


def test_it_is_a_backend() -> None:
    backend: Backend = NumpyBackend()
    store: Store = backend.store(0, 1)
    assert backend.name == "numpy"
    assert store.capacity == 0
    assert backend == OPS
    assert hash(backend) == hash(OPS)
    assert repr(backend) == "NumpyBackend()"


def test_host_is_the_data_itself() -> None:
    data = np.arange(3)
    assert OPS.host(data) is data
    assert OPS.host([1, 2]).tolist() == [1, 2]


class TestAttentionMass:
    def test_causal_softmax_column_sums(self) -> None:
        # query 0 sees row 0 only; query 1 has logits log 3 and 0: 3/4 and 1/4
        view = table([[LOG3], [0.0]])
        mass = OPS.attention_mass(view, asking([[[1.0], [1.0]]], [0, 1]))
        assert mass.dtype == np.float64
        np.testing.assert_allclose(mass, one_head(1.75, 0.25), atol=1e-7)

    def test_scale_multiplies_the_logits(self) -> None:
        view = table([[LOG3], [0.0]])
        mass = OPS.attention_mass(view, asking([[[1.0]]], [1], scale=2.0))
        np.testing.assert_allclose(mass, one_head(0.9, 0.1), atol=1e-7)

    def test_causality_goes_by_position_not_by_row(self) -> None:
        view = table([[LOG3], [0.0], [0.0]], positions=[5, 0, 1])
        mass = OPS.attention_mass(view, asking([[[1.0]]], [1]))
        np.testing.assert_allclose(mass, one_head(0.0, 0.5, 0.5))

    def test_padding_rows_and_queries_take_no_part(self) -> None:
        view = table([[9.0], [LOG3], [0.0]], valid=[False, True, True])
        step = asking([[[1.0], [1.0], [1.0]]], [0, 1, 2], valid=[False, True, True])
        np.testing.assert_allclose(OPS.attention_mass(view, step), one_head(0.0, 1.75, 0.25), atol=1e-7)
        only_padding = asking([[[1.0]]], [2], valid=[False])
        np.testing.assert_array_equal(OPS.attention_mass(view, only_padding), one_head(0.0, 0.0, 0.0))

    def test_a_query_that_sees_nothing_contributes_nothing(self) -> None:
        view = table([[0.0], [0.0]], positions=[3, 4])
        mass = OPS.attention_mass(view, asking([[[1.0], [1.0]]], [2, 3]))
        np.testing.assert_array_equal(mass, one_head(1.0, 0.0))

    @pytest.mark.parametrize(
        ("window", "expected"),
        [(0, [0.0, 0.0, 0.0]), (1, [0.5, 0.5, 0.0]), (2, [1.5, 0.5, 0.0]), (9, [1.5, 0.5, 0.0])],
    )
    def test_window_counts_valid_queries_from_the_end(self, window: int, expected: list[float]) -> None:
        view = table([[0.0], [0.0], [0.0]], valid=[True, True, False])
        step = asking([[[1.0], [1.0], [1.0]]], [0, 1, 2], valid=[True, True, False])  # the last query is padding
        np.testing.assert_allclose(OPS.attention_mass(view, step.latest(window)), one_head(*expected))

    def test_count_bias_weighs_a_row_by_its_tokens(self) -> None:
        view = table([[0.0], [0.0]], count=Column(one_head(3.0, 1.0), "sum"))
        step = asking([[[1.0]]], [1], count_bias=True)
        np.testing.assert_allclose(OPS.attention_mass(view, step), one_head(0.75, 0.25))
        unbiased = replace(step, count_bias=False)
        np.testing.assert_allclose(OPS.attention_mass(view, unbiased), one_head(0.5, 0.5))

    def test_neighbouring_query_heads_share_a_key_value_head(self) -> None:
        # keys differ by head: [log 3, 0] and [0, log 4]; query heads 0, 1 -> head 0 and 2, 3 -> head 1
        view = heads(table([[LOG3], [0.0]]), table([[0.0], [LOG4]]))
        queries = [[[1.0]], [[0.0]], [[1.0]], [[1.0]]]
        mean = OPS.attention_mass(view, asking(queries, [1]))
        np.testing.assert_allclose(mean, [[[0.625, 0.375], [0.2, 0.8]]], atol=1e-7)
        largest = OPS.attention_mass(view, asking(queries, [1]), group="max")
        np.testing.assert_allclose(largest, [[[0.75, 0.5], [0.2, 0.8]]], atol=1e-7)

    def test_max_is_of_column_sums_not_of_single_queries(self) -> None:
        # head 0 pays row 0: 3/4, 1/4; head 1: 1/2, 1/2. Both column sums are 1, though single payments reach 3/4.
        view = table([[LOG3], [0.0]])
        queries = [[[1.0], [-1.0]], [[0.0], [0.0]]]
        mass = OPS.attention_mass(view, asking(queries, [1, 2]), group="max")
        np.testing.assert_allclose(mass, one_head(1.0, 1.0), atol=1e-7)

    def test_huge_logits_do_not_overflow(self) -> None:
        view = table([[1e4], [1e4], [0.0]])
        np.testing.assert_allclose(OPS.attention_mass(view, asking([[[1e3]]], [2])), one_head(0.5, 0.5, 0.0))

    def test_batch_rows_do_not_see_each_other(self) -> None:
        store = OPS.store(0, 1)
        keys = np.array([[LOG3, 0.0], [9.0, LOG2]]).reshape(2, 1, 2, 1)
        valid = np.array([[True, True], [False, True]])
        positions = np.array([[0, 1], [0, 1]])
        view = store.append(Rows(keys, keys, positions, valid))
        step = replace(
            asking([[[1.0], [1.0]]], [0, 1]),
            queries=np.ones((2, 1, 2, 1)),
            query_positions=positions,
            query_valid=valid,
        )
        mass = OPS.attention_mass(view, step)
        np.testing.assert_allclose(mass, [[[1.75, 0.25]], [[0.0, 1.0]]], atol=1e-12)


class TestTopK:
    @pytest.mark.parametrize(
        ("quota", "expected"),
        [(0, [0, 0, 0, 0]), (1, [0, 1, 0, 0]), (2, [0, 1, 0, 1]), (4, [1, 1, 1, 1]), (7, [1, 1, 1, 1])],
    )
    def test_best_rows(self, quota: int, expected: list[int]) -> None:
        keep = OPS.top_k(one_head(1.0, 9.0, 2.0, 3.0), np.array([[quota]]), table([[0.0]] * 4))
        assert keep.dtype == np.bool_
        assert keep[0, 0].tolist() == [bool(k) for k in expected]

    def test_ties_go_to_the_later_arrival_wherever_it_lies(self) -> None:
        view = table([[0.0]] * 4, positions=[7, 2, 9, 4])
        keep = OPS.top_k(one_head(1.0, 1.0, 1.0, 1.0), np.array([[2]]), view)
        assert keep[0, 0].tolist() == [True, False, True, False]

    def test_padding_never_stays(self) -> None:
        view = table([[0.0]] * 3, valid=[False, True, True])
        keep = OPS.top_k(one_head(math.inf, 0.0, 1.0), np.array([[3]]), view)
        assert keep[0, 0].tolist() == [False, True, True]

    def test_infinite_scores_rank(self) -> None:
        scores = one_head(-math.inf, 0.0, math.inf, -math.inf)
        view = table([[0.0]] * 4)
        assert OPS.top_k(scores, np.array([[1]]), view)[0, 0].tolist() == [False, False, True, False]
        assert OPS.top_k(scores, np.array([[3]]), view)[0, 0].tolist() == [False, True, True, True]

    def test_every_head_has_its_own_quota(self) -> None:
        view = heads(table([[0.0]] * 3), table([[0.0]] * 3))
        keep = OPS.top_k(np.array([[[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]]), np.array([[1, 2]]), view)
        assert keep.tolist() == [[[True, False, False], [True, True, False]]]


def test_arrival_rank() -> None:
    view = table([[0.0]] * 5, positions=[8, 3, 0, 5, -1], valid=[True, True, False, True, False])
    rank = OPS.arrival_rank(view)
    assert rank.dtype == np.int64
    assert rank[0, 0].tolist() == [2, 0, 5, 1, 5]


class TestNearestPosition:
    def test_by_arrival_with_ties_to_the_earlier(self) -> None:
        # positions 0..6 shuffled over rows; kept: position 2 (row 4) and position 6 (row 1); 4 is as far from both
        view = table([[0.0]] * 7, positions=[4, 6, 0, 5, 2, 1, 3])
        keep = np.isin(view.positions, [2, 6])
        nearest = OPS.nearest_position(view, keep)
        assert nearest.dtype == np.int64
        assert nearest[0, 0].tolist() == [4, 1, 4, 1, 4, 4, 4]

    def test_padding_is_neither_asked_for_nor_given(self) -> None:
        view = table([[0.0]] * 4, valid=[False, True, True, True])
        keep = one_head(True, False, False, True)
        assert OPS.nearest_position(view, keep)[0, 0].tolist() == [-1, 3, 3, 3]

    def test_a_head_that_keeps_nothing_has_no_nearest(self) -> None:
        view = heads(table([[0.0]] * 2), table([[0.0]] * 2))
        keep = np.array([[[False, False], [False, True]]])
        assert OPS.nearest_position(view, keep).tolist() == [[[-1, -1], [1, 1]]]


def test_segment_sum() -> None:
    data = np.array([[[[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]], [[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]]]])
    index = np.array([[[[2, 0], [2, -1], [-1, 0]], [[1, 1], [-1, -1], [-1, -1]]]])
    out = OPS.segment_sum(data, index)
    assert out.dtype == np.float64
    assert out.tolist() == [[[34.0, 0.0, 5.0], [0.0, 3.0, 0.0]]]


class TestCompact:
    def test_eviction_orders_by_arrival_and_pads(self) -> None:
        view = table([[1.0], [2.0], [3.0], [4.0]], positions=[6, 2, 9, 4], mass=Column(one_head(0.1, 0.2, 0.3, 0.4)))
        out = OPS.compact(view, Plan(keep=one_head(True, False, True, True)), 5)
        assert out.keys[0, 0, :, 0].tolist() == [4.0, 1.0, 3.0, 0.0, 0.0]
        assert out.values[0, 0, :, 0].tolist() == [40.0, 10.0, 30.0, 0.0, 0.0]
        assert out.positions[0, 0].tolist() == [4, 6, 9, -1, -1]
        assert out.valid[0, 0].tolist() == [True, True, True, False, False]
        assert out.columns["count"].data[0, 0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
        assert out.columns["mass"].data[0, 0].tolist() == [0.4, 0.1, 0.3, 0.0, 0.0]
        assert (out.layer, out.num_layers) == (2, 5)

    def test_merge_weights_own_and_folded_rows(self) -> None:
        view = table([[1.0, 0.0], [3.0, 4.0], [5.0, 6.0], [7.0, 7.0]])
        plan = Plan(
            keep=one_head(False, True, False, True),
            into=one_head([1], [-1], [1], [-1]),
            weight=one_head([0.25], [0.0], [0.25], [0.0]),
            self_weight=one_head(1.0, 0.5, 1.0, 1.0),
        )
        out = OPS.compact(view, plan, 2)
        np.testing.assert_array_equal(out.keys[0, 0], [[3.0, 3.5], [7.0, 7.0]])
        np.testing.assert_array_equal(out.values[0, 0], [[30.0, 35.0], [70.0, 70.0]])
        assert out.columns["count"].data[0, 0].tolist() == [3.0, 1.0]
        assert out.positions[0, 0].tolist() == [1, 3]

    def test_value_only_merge_leaves_keys_alone(self) -> None:
        view = table([[1.0], [3.0]])
        plan = Plan(
            keep=one_head(False, True),
            into=one_head([1], [-1]),
            weight=one_head([0.5], [0.0]),
            self_weight=one_head(1.0, 0.5),
            merge_keys=False,
        )
        out = OPS.compact(view, plan, 1)
        assert out.keys.item() == 3.0
        assert out.values.item() == 20.0

    def test_a_row_that_folds_into_several_shares_its_counts_equally(self) -> None:
        # row 1 (6 tokens) folds into rows 0 and 2 with unequal weights, row 3 (1 token) into row 2 only
        view = table(
            [[2.0], [8.0], [4.0], [0.0]],
            count=Column(one_head(1.0, 6.0, 2.0, 1.0).astype(np.float32), "sum"),
            mass=Column(one_head(0.5, 0.25, 0.125, 1.0), "sum"),
            segment=Column(one_head(7, 8, 9, 8), "keep"),
        )
        plan = Plan(
            keep=one_head(True, False, True, False),
            into=one_head([-1, -1], [0, 2], [-1, -1], [2, -1]),
            weight=one_head([0.0, 0.0], [0.25, 0.5], [0.0, 0.0], [0.25, 99.0]),
            self_weight=one_head(0.75, 1.0, 0.25, 1.0),
        )
        out = OPS.compact(view, plan, 2)
        assert out.keys[0, 0, :, 0].tolist() == [3.5, 5.0]
        assert out.columns["count"].data[0, 0].tolist() == [4.0, 6.0]
        assert out.columns["mass"].data[0, 0].tolist() == [0.625, 1.25]
        assert out.columns["segment"].data[0, 0].tolist() == [7, 9]
        assert [out.columns[c].data.dtype for c in ("count", "mass", "segment")] == [np.float32, np.float64, np.int64]

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_rows_that_nothing_folds_into_keep_their_bits(self, dtype: Any) -> None:
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((1, 1, 4, 3)).astype(dtype)
        view = replace(table([[0.0]] * 4), keys=vectors, values=-vectors)
        plan = Plan(
            keep=one_head(True, True, True, False),
            into=one_head([-1], [-1], [-1], [0]),
            weight=one_head([0.0], [0.0], [0.0], [0.5]),
            self_weight=one_head(0.5, 1.0, 1.0, 1.0),
        )
        out = OPS.compact(view, plan, 3)
        assert out.keys.dtype == out.values.dtype == dtype
        assert out.keys[0, 0, 1:].tobytes() == vectors[0, 0, 1:3].tobytes()
        assert out.values[0, 0, 1:].tobytes() == (-vectors)[0, 0, 1:3].tobytes()
        assert out.keys[0, 0, 0].tolist() != vectors[0, 0, 0].tolist()

    def test_merging_happens_in_float64(self) -> None:
        # In float16 2048 + 1 + 1 stays 2048, and 2 * 60000 is infinite.
        view = table([[2048.0, -60000.0], [1.0, 60000.0], [1.0, 0.0]])
        view = replace(view, keys=view.keys.astype(np.float16))
        plan = Plan(
            keep=one_head(True, False, False),
            into=one_head([-1, -1], [0, 0], [0, -1]),
            weight=one_head([0.0, 0.0], [2.0, -1.0], [1.0, 0.0]),
            self_weight=one_head(1.0, 1.0, 1.0),
        )
        assert OPS.compact(view, plan, 1).keys[0, 0, 0].tolist() == [2050.0, 0.0]

    def test_registers_are_carried_on_and_replaced(self) -> None:
        view = replace(table([[1.0]]), registers={"a": np.array([[1.0]]), "b": np.array([[2.0]])})
        plan = Plan(keep=one_head(True), registers={"b": np.array([[3.0]]), "c": np.array([[4.0]])})
        out = OPS.compact(view, plan, 1)
        assert {name: r.item() for name, r in out.registers.items()} == {"a": 1.0, "b": 3.0, "c": 4.0}

    def test_heads_keep_different_numbers_of_rows(self) -> None:
        view = heads(table([[1.0], [2.0]]), table([[3.0], [4.0]]))
        out = OPS.compact(view, Plan(keep=np.array([[[True, True], [False, True]]])), 2)
        assert out.keys[0, :, :, 0].tolist() == [[1.0, 2.0], [4.0, 0.0]]
        assert out.positions.tolist() == [[[0, 1], [1, -1]]]

    def test_it_leaves_the_table_it_was_given_alone(self) -> None:
        view = table([[1.0], [2.0]])
        out = OPS.compact(view, Plan(keep=one_head(True, True)), 2)
        out.keys[...] = 0
        out.columns["count"].data[...] = 0
        assert view.keys[0, 0, :, 0].tolist() == [1.0, 2.0]
        assert view.columns["count"].data[0, 0].tolist() == [1.0, 1.0]

    @pytest.mark.parametrize(
        ("keep", "into", "message"),
        [
            ([False, True, True, True], None, "3 rows at layer 2, batch row 0, head 0; at most 2"),
            ([True, True, False, False], None, r"rows \[0\].*padding"),
            ([False, True, False, False], [-1, -1, 3, -1], "row 2 into row 3.*not kept"),
            ([False, True, False, False], [-1, -1, 4, -1], "row 2 into row 4.*not kept"),
            ([False, True, True, False], [-1, -1, 1, -1], "row 2.*which is kept"),
            ([False, True, False, False], [1, -1, -1, -1], "row 0.*which is padding"),
        ],
    )
    def test_it_refuses_what_is_no_plan(self, keep: list[bool], into: list[int] | None, message: str) -> None:
        view = table([[0.0]] * 4, valid=[False, True, True, True])
        plan = Plan(keep=one_head(*keep))
        if into is not None:
            targets = np.array(into).reshape(1, 1, 4, 1)
            plan = replace(plan, into=targets, weight=np.ones((1, 1, 4, 1)), self_weight=np.ones((1, 1, 4)))
        with pytest.raises(PlanError, match=message):
            OPS.compact(view, plan, 2)

    @pytest.mark.parametrize("missing", ["weight", "self_weight"])
    def test_a_plan_refuses_folds_without_weights(self, missing: str) -> None:
        with pytest.raises(PlanError, match="needs weight= and self_weight="):
            Plan(
                keep=one_head(True, False),
                into=one_head([-1], [0]),
                weight=None if missing == "weight" else one_head([0.0], [1.0]),
                self_weight=None if missing == "self_weight" else one_head(1.0, 1.0),
            )

    def test_it_refuses_a_mask_of_another_shape(self) -> None:
        with pytest.raises(PlanError, match=r"shape \(1, 1, 3\).*\(1, 1, 2\)"):
            OPS.compact(table([[0.0]] * 2), Plan(keep=one_head(True, True, False)), 2)


def arriving(
    first: int, tokens: int, *, valid: Any = None, dtype: Any = np.float32, columns: dict[str, Arr] | None = None
) -> Rows:
    """Rows of 2 batch rows and 2 heads; the key of token p, head h, batch row b is p + 10 h + 100 b."""
    positions = np.broadcast_to(np.arange(first, first + tokens), (2, tokens))
    keys = positions[:, None, :] + 10 * np.arange(2)[None, :, None] + 100 * np.arange(2)[:, None, None]
    return Rows(
        keys=keys[..., None].astype(dtype),
        values=np.repeat(-keys[..., None], 3, axis=-1).astype(dtype),
        positions=positions,
        valid=np.ones((2, tokens), dtype=bool) if valid is None else np.array(valid),
        columns=columns or {},
    )


class TestStore:
    def test_append_spreads_over_heads_and_counts(self) -> None:
        view = OPS.store(3, 7).append(arriving(0, 2, valid=[[True, True], [False, True]]))
        assert view.shape == (2, 2, 2)
        assert view.keys[..., 0].tolist() == [[[0, 1], [10, 11]], [[100, 101], [110, 111]]]
        assert view.positions.tolist() == [[[0, 1]] * 2] * 2
        assert view.valid.tolist() == [[[True, True]] * 2, [[False, True]] * 2]
        count = view.columns["count"]
        assert (count.on_merge, count.data.dtype) == ("sum", np.float32)
        assert count.data.tolist() == [[[1, 1]] * 2, [[0, 1]] * 2]
        assert (view.layer, view.num_layers) == (3, 7)

    def test_appended_rows_come_last_and_old_views_stand(self) -> None:
        store = OPS.store(0, 1)
        before = store.append(arriving(0, 2))
        after = store.append(arriving(2, 1), limit=64)
        assert before.shape == (2, 2, 2)
        assert after.keys[1, 1, :, 0].tolist() == [110, 111, 112]
        assert after.values[1, 1, 2].tolist() == [-112] * 3
        assert store.view() is after
        assert store.capacity == 3

    def test_columns_are_zero_where_they_did_not_exist(self) -> None:
        store = OPS.store(0, 1)
        store.append(arriving(0, 1))
        store.append(arriving(1, 2, columns={"segment": np.array([[4, 5], [6, 7]])}))
        store.observe({"mass": Column(np.full((2, 2, 3), 0.5), on_merge="sum")})
        view = store.append(arriving(3, 1))
        assert view.columns["segment"].data.tolist() == [[[0, 4, 5, 0]] * 2, [[0, 6, 7, 0]] * 2]
        assert view.columns["segment"].data.dtype == np.int64
        assert view.columns["segment"].on_merge == "keep"
        assert view.columns["mass"].data.tolist() == [[[0.5, 0.5, 0.5, 0.0]] * 2] * 2
        assert view.columns["mass"].on_merge == "sum"
        assert view.columns["count"].data.tolist() == [[[1] * 4] * 2] * 2

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_dtype_is_preserved(self, dtype: Any) -> None:
        store = OPS.store(0, 1)
        store.append(arriving(0, 3, dtype=dtype))
        store.apply(Plan(keep=np.ones((2, 2, 3), dtype=bool)), np.full((2, 2), 3))
        view = store.append(arriving(3, 1, dtype=np.float64))
        assert view.keys.dtype == view.values.dtype == dtype

    def test_it_owns_its_rows(self) -> None:
        store, rows, mass = OPS.store(0, 1), arriving(0, 2), np.zeros((2, 2, 2))
        store.append(rows)
        store.observe({"mass": Column(mass)})
        rows.keys[...] = 77
        mass[...] = 77
        assert store.view().keys.max() == 111
        assert store.view().columns["mass"].data.max() == 0

    def test_apply_compacts_and_appending_goes_on(self) -> None:
        store = OPS.store(0, 1)
        store.append(arriving(0, 4))
        keep = np.zeros((2, 2, 4), dtype=bool)
        keep[..., [1, 3]] = True
        store.apply(Plan(keep=keep, registers={"share": np.full((2, 2), 0.5)}), np.full((2, 2), 2))
        assert store.capacity == store.slots == 2
        view = store.append(arriving(4, 1))
        assert view.positions.tolist() == [[[1, 3, 4]] * 2] * 2
        assert view.keys[1, 0, :, 0].tolist() == [101, 103, 104]
        assert view.registers["share"].tolist() == [[0.5, 0.5]] * 2

    def test_select_batch_reorders_and_repeats_everything(self) -> None:
        store = OPS.store(0, 1)
        store.append(arriving(0, 2, valid=[[True, True], [False, True]]))
        store.apply(
            Plan(keep=store.view().valid, registers={"share": np.array([[1, 2], [3, 4]])}),
            np.array([[2, 2], [1, 1]]),
        )
        store.select_batch([1, 0, 1])
        view = store.view()
        assert view.keys[:, 0, :, 0].tolist() == [[101, 0], [0, 1], [101, 0]]
        assert view.values[:, 0, :, 0].tolist() == [[-101, 0], [0, -1], [-101, 0]]
        assert view.positions[:, 0].tolist() == [[1, -1], [0, 1], [1, -1]]
        assert view.valid[:, 0].tolist() == [[True, False], [True, True], [True, False]]
        assert view.columns["count"].data[:, 1].tolist() == [[1, 0], [1, 1], [1, 0]]
        assert view.registers["share"].tolist() == [[3, 4], [1, 2], [3, 4]]

    def test_nbytes_and_clear(self) -> None:
        store = OPS.store(0, 1)
        assert store.nbytes() == (0, 0)
        store.append(arriving(0, 5, dtype=np.float16))
        rows = 2 * 2 * 5
        assert store.nbytes() == (rows * (1 + 3) * 2, rows * (8 + 1 + 4))  # positions, valid, count
        store.clear()
        assert (store.nbytes(), store.capacity) == ((0, 0), 0)
        with pytest.raises(CacheError, match="empty"):
            store.view()

    def test_an_empty_store_says_so(self) -> None:
        store = OPS.store(4, 8)
        store.select_batch([0])  # nothing to choose from is nothing to do
        plan, kept = Plan(keep=np.ones((1, 1, 1))), np.ones((1, 1), np.int64)
        for use in (store.view, lambda: store.observe({}), lambda: store.apply(plan, kept)):
            with pytest.raises(CacheError, match="layer 4 is empty"):
                use()


class TestFromHost:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", None])
    def test_it_is_a_copy_in_the_dtype_named(self, dtype: str | None) -> None:
        data = np.arange(6.0, dtype=np.float32).reshape(2, 3)
        made = OPS.from_host(data, dtype=dtype)
        assert made.dtype == (dtype or "float32")
        data[:] = 7.0
        assert made.tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_what_numpy_lacks_is_refused_and_not_replaced(self) -> None:
        with pytest.raises(BackendUnavailableError, match=r"no dtype 'bfloat16'\. Hint: backend='torch'"):
            OPS.from_host(np.ones(2), dtype="bfloat16")
