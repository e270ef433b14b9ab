"""The anchor whose key is most like a row's: worked out by hand, and the torch backend against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving import to
from hypothesis import given
from hypothesis import strategies as st
from scenes import LargestTensor
from tables import OPS, ORACLE, ROUNDING, Case, cases, in_torch

from kvpolicy import CacheView, backend_by_name
from kvpolicy.backends.torch import TorchBackend

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])
A, B, C, D, E = range(5)  # rows


def similar(
    backend: str,
    keys: list[list[float]],
    rows: list[int],
    anchors: list[int],
    *,
    positions: list[int] | None = None,
    valid: list[int] | None = None,
) -> tuple[list[int], list[float]]:
    """Of one head: where each row goes, and how alike the two are."""
    count = len(keys)
    marks = [np.isin(np.arange(count), chosen) for chosen in (rows, anchors, range(count) if valid is None else valid)]
    is_row, is_anchor, alive = (to(backend, mark[None, None]) for mark in marks)
    vectors = to(backend, np.array(keys, dtype=np.float64)[None, None])
    places = to(backend, np.array(range(count) if positions is None else positions)[None, None])
    into, similarity = backend_by_name(backend).most_similar(
        CacheView(vectors, vectors, places, alive, {}), is_row, is_anchor
    )
    return into[0, 0].tolist(), np.asarray(similarity)[0, 0].round(12).tolist()


@BOTH
def test_direction_counts_and_length_does_not(backend: str) -> None:
    keys = [[1.0, 0.0], [0.0, 9.0], [0.1, 3.0], [5.0, 5.0], [-1.0, 0.0]]
    into, cosine = similar(backend, keys, [C, D, E], [A, B])
    assert into == [-1, -1, B, A, B]  # D is as like A as B: the earlier; E points away from A, and is square to B
    assert cosine == [0, 0, round(3 / 9.01**0.5, 12), round(0.5**0.5, 12), 0]


@BOTH
def test_ties_go_to_the_earliest_arrival_wherever_it_lies(backend: str) -> None:
    keys = [[3.0, 4.0]] * 5
    assert similar(backend, keys, [A, E], [B, C, D], positions=[9, 7, 2, 5, 0]) == ([C, -1, -1, -1, C], [1, 0, 0, 0, 1])


@BOTH
def test_a_key_of_length_zero_is_like_nothing(backend: str) -> None:
    keys = [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    # Square to all: the earliest. And an anchor of no length is closer than one that points away.
    assert similar(backend, keys, [A], [B, C]) == ([B, -1, -1, -1, -1], [0] * 5)
    assert similar(backend, keys, [C], [A, B]) == ([-1, -1, A, -1, -1], [0] * 5)
    assert similar(backend, keys, [A], [E]) == ([E, -1, -1, -1, -1], [0] * 5)


@BOTH
def test_without_anchors_or_rows_there_is_nothing(backend: str) -> None:
    keys = [[1.0], [2.0], [3.0]]
    nothing = ([-1] * 3, [0.0] * 3)
    assert similar(backend, keys, [A, B, C], []) == nothing
    assert similar(backend, keys, [], [A, B, C]) == nothing
    assert similar(backend, keys, [A], [B], valid=[A, C]) == nothing


@BOTH
def test_invalid_rows_neither_ask_nor_answer(backend: str) -> None:
    keys = [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]
    assert similar(backend, keys, [A, D], [B, C], valid=[A, C]) == ([C, -1, -1, -1], [round(0.5**0.5, 12), 0, 0, 0])


@BOTH
def test_a_head_without_anchors_beside_one_that_has_some(backend: str) -> None:
    keys = to(backend, np.ones((1, 2, 3, 2)))
    places, alive = to(backend, np.tile(np.arange(3), (1, 2, 1))), to(backend, np.ones((1, 2, 3), bool))
    anchors = to(backend, np.array([[[False, False, False], [False, False, True]]]))
    rows = to(backend, np.array([[[True, True, True], [True, True, False]]]))
    into, cosine = backend_by_name(backend).most_similar(CacheView(keys, keys, places, alive, {}), rows, anchors)
    assert into.tolist() == [[[-1, -1, -1], [2, 2, -1]]]
    np.testing.assert_allclose(np.asarray(cosine), [[[0, 0, 0], [1, 1, 0]]], rtol=1e-12)


@given(cases(), st.sampled_from([0.2, 0.6, 1.0]), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1, 7, 1 << 22]))
def test_it_is_the_oracles(case: Case, rows_share: float, anchors_share: float, chunk: int) -> None:
    shape, rng = case.numpy.shape, case.rng
    rows, anchors = rng.random(shape) < rows_share, rng.random(shape) < anchors_share  # a row may be an anchor too
    nothing = rng.random(shape) < 0.1
    case.numpy.keys[nothing], case.torch.keys[in_torch(nothing)] = 0, 0
    due_into, due = ORACLE.most_similar(case.numpy, rows, anchors)
    into, cosine = TorchBackend(chunk_elements=chunk).most_similar(case.torch, in_torch(rows), in_torch(anchors))
    assert into.dtype == torch.int64
    dtype = case.torch.keys.dtype
    assert cosine.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 4 * ROUNDING["float32"]
    np.testing.assert_allclose(cosine.numpy(), due, rtol=0, atol=tolerance)
    assert ((into.numpy() >= 0) == (due_into >= 0)).all()
    for b, h, s in np.argwhere(into.numpy() != due_into):  # directions that only rounding tells apart
        one, other = case.numpy.keys[b, h, s], case.numpy.keys[b, h, into[b, h, s]]
        assert anchors[b, h, into[b, h, s]]
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) == pytest.approx(due[b, h, s], abs=tolerance)


def test_equal_keys_tie_in_half_precision_too() -> None:
    key = torch.randn(1, 1, 1, 64, dtype=torch.float16)
    keys = key.expand(1, 1, 33, 64).contiguous()
    positions = torch.arange(33).flip(0)[None, None]
    view = CacheView(keys, keys, positions, torch.ones_like(positions, dtype=torch.bool), {})
    rows = positions < 16
    into, cosine = OPS.most_similar(view, rows, ~rows)
    assert set(into[rows].tolist()) == {16}  # the row that arrived 16th lies in the middle
    assert cosine[rows].tolist() == pytest.approx([1.0] * 16, abs=1e-6)


def test_its_memory_is_bounded_by_the_chunk() -> None:
    keys = torch.randn(1, 2, 256, 4)
    positions = torch.arange(256).expand(1, 2, -1)
    view = CacheView(keys, keys, positions, torch.ones_like(positions, dtype=torch.bool), {})
    rows = positions % 2 == 0
    with LargestTensor() as largest:
        small = TorchBackend(chunk_elements=1024).most_similar(view, rows, ~rows)
    assert largest.elements <= keys.numel()
    whole = TorchBackend().most_similar(view, rows, ~rows)
    assert torch.equal(small[0], whole[0])
    torch.testing.assert_close(small[1], whole[1], rtol=0, atol=1e-6)
