"""The nearest key by the kernels against the oracle, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import LargestTensor
from tables import ORACLE, Case, cases, in_torch

from kvpolicy import CacheView
from kvpolicy.backends.torch import TorchBackend

pytest.importorskip("triton")

from kvpolicy.backends.triton import TritonBackend
from kvpolicy.backends.triton.kernels.fold import Folding
from kvpolicy.backends.triton.kernels.nearest import Search

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = TritonBackend(folding=Folding(2, 4, 1), search=Search(16, 16, 4, 2))


def one_head(keys: torch.Tensor, positions: list[int] | None = None, valid: list[int] | None = None) -> CacheView:
    rows = len(keys)
    places = torch.tensor(range(rows) if positions is None else positions, device=DEVICE)[None, None]
    alive = torch.isin(torch.arange(rows), torch.tensor(range(rows) if valid is None else valid))
    keys = keys.to(DEVICE)[None, None]
    return CacheView(keys, keys, places, alive.to(DEVICE)[None, None], {})


def similar(view: CacheView, rows: list[int], anchors: list[int]) -> tuple[list[int], list[float]]:
    marks = [torch.isin(torch.arange(view.shape[2]), torch.tensor(chosen)) for chosen in (rows, anchors)]
    into, cosine = SMALL.most_similar(view, *(mark.to(DEVICE)[None, None] for mark in marks))
    assert (into.dtype, cosine.dtype) == (torch.int64, torch.float32)
    return into[0, 0].tolist(), cosine[0, 0].tolist()


def test_direction_counts_and_length_does_not() -> None:
    view = one_head(torch.tensor([[1.0, 0.0], [0.0, 9.0], [0.1, 3.0], [5.0, 5.0], [-1.0, 0.0]]))
    into, cosine = similar(view, [2, 3, 4], [0, 1])
    assert into == [-1, -1, 1, 0, 1]
    assert cosine == pytest.approx([0, 0, 3 / 9.01**0.5, 0.5**0.5, 0], abs=1e-6)


def test_ties_go_to_the_earliest_arrival_wherever_it_lies() -> None:
    keys = torch.tensor([[3.0, 4.0]]).expand(40, 2)
    arrivals = np.random.default_rng(0).permutation(40)
    anchors = [n for n in range(40) if n % 3]
    earliest = min(anchors, key=lambda n: int(arrivals[n]))
    into, cosine = similar(one_head(keys, arrivals.tolist()), list(range(0, 40, 3)), anchors)
    assert set(into[::3]) == {earliest}
    assert cosine[::3] == pytest.approx([1.0] * 14, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tiles_by_the_shape(dtype: torch.dtype) -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 4.0], [8.0, 4.0]], dtype=dtype)
    marks = (torch.tensor([[[False, False, True, True]]]), torch.tensor([[[True, True, False, False]]]))
    into, cosine = TritonBackend().most_similar(one_head(keys), *(mark.to(DEVICE) for mark in marks))
    assert into[0, 0].tolist() == [-1, -1, 1, 0]
    assert cosine[0, 0].tolist() == pytest.approx([0, 0, 4 / 16.25**0.5, 8 / 80**0.5], abs=1e-3)


def test_a_key_of_length_zero_is_like_nothing() -> None:
    view = one_head(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert similar(view, [0], [1, 2]) == ([1, -1, -1, -1, -1], [0] * 5)
    assert similar(view, [2], [0, 1]) == ([-1, -1, 0, -1, -1], [0] * 5)
    assert similar(view, [0], [4]) == ([4, -1, -1, -1, -1], [0] * 5)


def test_without_anchors_or_rows_there_is_nothing() -> None:
    view, nothing = one_head(torch.ones(3, 1)), ([-1] * 3, [0.0] * 3)
    assert similar(view, [0, 1, 2], []) == nothing
    assert similar(view, [], [0, 1, 2]) == nothing
    assert similar(one_head(torch.ones(3, 1), valid=[0, 2]), [0], [1]) == nothing


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lengths_whose_square_is_no_float32(size: float) -> None:
    keys = torch.tensor([[3.0, 4.0], [4.0, 3.0], [3.0, 4.1]]) * torch.tensor([[1.0], [size], [size]])
    into, cosine = similar(one_head(keys), [0], [1, 2])
    assert into == [2, -1, -1]
    assert cosine[0] == pytest.approx(0.99993, abs=1e-4)


def test_what_does_not_count_may_hold_anything() -> None:
    keys = torch.randn(21, 3, generator=torch.Generator().manual_seed(0))
    rows, anchors = list(range(0, 21, 2)), [1, 5, 7]
    clean = similar(one_head(keys), rows, anchors)
    spoiled = keys.clone()
    spoiled[[n for n in range(21) if n not in (*rows, *anchors)]] = torch.nan
    assert similar(one_head(spoiled), rows, anchors) == clean


@settings(max_examples=6)
@given(cases(dtypes=st.sampled_from(["float16", "bfloat16", "float32"]), max_rows=20), st.sampled_from([0.2, 1.0]))
def test_it_is_the_oracles(case: Case, share: float) -> None:
    shape, rng = case.numpy.shape, case.rng
    rows, anchors = rng.random(shape) < 0.8, rng.random(shape) < share
    nothing = rng.random(shape) < 0.1
    case.numpy.keys[nothing], case.torch.keys[in_torch(nothing)] = 0, 0
    due_into, due = ORACLE.most_similar(case.numpy, rows, anchors)
    places = [data.to(DEVICE) for data in (case.torch.keys, case.torch.positions, case.torch.valid)]
    view = CacheView(places[0], places[0], places[1], places[2], {})
    marks = [in_torch(mark).to(DEVICE) for mark in (rows, anchors)]
    into, cosine = (made.cpu().numpy() for made in SMALL.most_similar(view, *marks))
    np.testing.assert_allclose(cosine, due, rtol=0, atol=2e-6)
    assert ((into >= 0) == (due_into >= 0)).all()
    # Where two anchors are as good as equal rounding may decide between them, and only there.
    for b, h, s in zip(*np.nonzero(into != due_into), strict=True):
        one, other = (case.numpy.keys[b, h, n] for n in (s, into[b, h, s]))
        lengths = np.linalg.norm(one) * np.linalg.norm(other)
        assert (one @ other / lengths if lengths else 0.0) == pytest.approx(due[b, h, s], abs=2e-6)


def test_its_memory_is_linear_in_the_table() -> None:
    view = one_head(torch.randn(60, 4))
    rows = view.positions % 2 == 0
    with LargestTensor() as largest:
        SMALL.most_similar(view, rows, ~rows)
    assert 0 < largest.elements <= 8 * view.keys.numel()  # the interpreter copies what it is given, byte by byte


def test_what_the_kernels_do_not_serve_is_the_torch_backends() -> None:
    view = one_head(torch.randn(9, 4, dtype=torch.float64))
    rows = view.positions % 2 == 0
    for mine, theirs in zip(*(b.most_similar(view, rows, ~rows) for b in (SMALL, TorchBackend())), strict=True):
        assert torch.equal(mine, theirs)
