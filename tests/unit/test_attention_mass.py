"""The attention that rows receive: the torch backend against the oracle, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from driving import to
from hypothesis import given
from hypothesis import strategies as st
from scenes import LargestTensor
from tables import OPS, ORACLE, Case, cases, in_torch, representable

from kvpolicy import CacheView, Phase, Step, backend_by_name
from kvpolicy.backends.torch import TorchBackend


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
    seen, kept = np.full(batch, 9), np.zeros((batch, heads), np.int64)
    mine = Step(Phase.PREFILL, seen, seen, kept, asking, where, real, 0.7, ORACLE, count_bias=count_bias)
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
    case: Case, queries: int, groups: int, bias: bool, window: int | None, group: Any, chunk: int
) -> None:
    dtype = str(case.torch.keys.dtype).removeprefix("torch.")
    mine, theirs = asked(case, min(queries, case.numpy.shape[2]), groups=groups, dtype=dtype, count_bias=bias)
    if window is not None:
        mine, theirs = mine.latest(window), theirs.latest(window)
    due = ORACLE.attention_mass(case.numpy, mine, group=group)
    got = TorchBackend(chunk_elements=chunk).attention_mass(case.torch, theirs, group=group)
    assert got.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    np.testing.assert_allclose(got.numpy(), due, rtol=0, atol=1e-12 if dtype == "float64" else 2e-5)
    assert not got.numpy()[~case.numpy.valid].any()


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_a_window_counts_valid_queries_under_right_padding_too(window: int) -> None:
    keys = np.zeros((1, 1, 4, 1))
    positions, valid = np.arange(4)[None, None], np.array([True, True, False, False])[None, None]
    view = CacheView(keys, keys, positions, valid, {})
    seen = np.array([2])
    step = Step(Phase.PREFILL, seen, seen, seen[:, None], keys, positions[:, 0], valid[:, 0], 1.0, ORACLE)
    due = [[[0.5, 0.5, 0, 0]]] if window == 1 else [[[1.5, 0.5, 0, 0]]]
    np.testing.assert_array_equal(ORACLE.attention_mass(view, step.latest(window)), due)
    view = CacheView(*(in_torch(data) for data in (keys, keys, positions, valid)), {})
    step = Step(
        *(Phase.PREFILL, seen, seen, seen[:, None], in_torch(keys), in_torch(positions[:, 0]), in_torch(valid[:, 0])),
        1.0,
        OPS,
    )
    np.testing.assert_array_equal(OPS.attention_mass(view, step.latest(window)).numpy(), due)


@pytest.mark.parametrize("window", [None, 40])
def test_its_memory_is_linear_in_the_prompt(window: int | None) -> None:
    tokens, dim, chunk = 512, 8, 8192
    keys = torch.randn(1, 2, tokens, dim)
    places, real = torch.arange(tokens)[None], torch.ones(1, tokens, dtype=torch.bool)
    view = CacheView(keys, keys, places.expand(1, 2, -1), real.expand(1, 2, -1), {})
    seen = np.array([tokens])
    queries = torch.randn(1, 4, tokens, dim)
    step = Step(Phase.PREFILL, seen, seen, seen[:, None], queries, places, real, 0.3, OPS)
    if window is not None:
        step = step.latest(window)
    whole = TorchBackend().attention_mass(view, step)
    with LargestTensor() as largest:
        small = TorchBackend(chunk_elements=chunk).attention_mass(view, step)
    assert 0 < largest.elements <= max(chunk, keys.numel(), queries.numel())
    torch.testing.assert_close(small, whole, rtol=0, atol=1e-4)


def test_one_query_of_logits_is_the_least_it_holds() -> None:
    tokens, chunk = 64, 1
    keys = torch.randn(1, 1, tokens, 1)
    places, real = torch.arange(tokens)[None], torch.ones(1, tokens, dtype=torch.bool)
    view = CacheView(keys, keys, places[None], real[None], {})
    seen = np.array([tokens])
    step = Step(Phase.PREFILL, seen, seen, seen[:, None], keys, places, real, 1.0, OPS)
    with LargestTensor() as largest:
        TorchBackend(chunk_elements=chunk).attention_mass(view, step)
    assert largest.elements == tokens


# Weights and thresholds ---------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])


def two_queries(backend: str, *, heads: int = 1) -> tuple[CacheView, Step]:
    """Keys log 3 and 0, asked twice with 1: the first query sees row 0 only, the second pays 3/4 and 1/4.

    With two query heads, the second asks with 0 and pays 1/2 and 1/2.
    """
    keys = to(backend, np.log([3.0, 1.0]).reshape(1, 1, 2, 1))
    places, real = to(backend, np.arange(2)[None]), to(backend, np.ones((1, 2), bool))
    queries = to(backend, np.array([1.0, 0.0])[:heads].reshape(1, heads, 1, 1).repeat(2, axis=2))
    seen = np.array([2])
    view = CacheView(keys, keys, places[:, None], real[:, None], {})
    return view, Step(Phase.PREFILL, seen, seen, seen[:, None], queries, places, real, 1.0, backend_by_name(backend))


@BOTH
def test_weights_count_each_query_so_often(backend: str) -> None:
    view, step = two_queries(backend)
    weights = to(backend, np.array([[2.0, 4.0]]))
    mass = np.asarray(step.ops.attention_mass(view, step, weights=weights))
    np.testing.assert_allclose(mass, [[[2 + 3, 1]]], atol=1e-12)


@BOTH
@pytest.mark.parametrize(("above", "due"), [(0.0, [2, 1]), (0.3, [2, 1]), (0.5, [2, 0]), (1.0, [2, 0])])
def test_above_counts_how_often_a_row_gets_that_share_of_the_most(backend: str, above: float, due: list[int]) -> None:
    view, step = two_queries(backend)
    mass = np.asarray(step.ops.attention_mass(view, step, above=above))
    assert mass.tolist() == [[due]]  # a row that a query does not see never counts, not even with above=0


@BOTH
def test_above_is_of_each_query_head_and_then_of_the_group(backend: str) -> None:
    view, step = two_queries(backend, heads=2)
    weights = to(backend, np.array([[1.0, 10.0]]))
    given = {"weights": weights, "above": 0.5}
    assert np.asarray(step.ops.attention_mass(view, step, **given)).tolist() == [[[11, 5]]]
    assert np.asarray(step.ops.attention_mass(view, step, group="max", **given)).tolist() == [[[11, 10]]]


@given(
    cases(dtypes=st.just("float64")),
    st.integers(1, 12),
    st.integers(1, 3),
    st.sampled_from([None, 0.01, 0.3, 0.6]),
    st.sampled_from(["mean", "max"]),
    st.sampled_from([1, 40, 1 << 22]),
    st.booleans(),
)
def test_weights_and_thresholds_are_the_oracles(
    case: Case, queries: int, groups: int, above: float | None, group: Any, chunk: int, scattered: bool
) -> None:
    mine, theirs = asked(case, min(queries, case.numpy.shape[2]), groups=groups)
    if scattered:  # queries of other passes, whose rows stand anywhere or have left
        where = case.rng.integers(0, 3 * case.numpy.shape[2], mine.query_positions.shape)
        mine = replace(mine, query_positions=where, whole_pass=False)
        theirs = replace(theirs, query_positions=in_torch(where), whole_pass=False)
    weights = case.rng.random(mine.query_positions.shape)
    due = ORACLE.attention_mass(case.numpy, mine, weights=weights, group=group, above=above)
    got = TorchBackend(chunk_elements=chunk).attention_mass(
        case.torch, theirs, weights=in_torch(weights), group=group, above=above
    )
    np.testing.assert_allclose(got.numpy(), due, rtol=0, atol=1e-12)


@BOTH
def test_shares_that_are_told_are_means_and_stand_for_nothing_else(backend: str) -> None:
    view, step = two_queries(backend, heads=2)
    told = replace(step, shares=to(backend, np.full((1, 1, 2), 7.0)))
    ways: list[dict[str, Any]] = [{"group": "max"}, {"above": 0.5}]
    for way in ways:
        due = np.asarray(step.ops.attention_mass(view, step, **way))
        assert np.asarray(step.ops.attention_mass(view, told, **way)).tolist() == due.tolist()
