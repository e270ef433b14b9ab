"""The kernels that set rows in relation, against the oracle, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import ORACLE, Case, cases, in_torch

from kvpolicy import CacheView
from kvpolicy.backends.torch import TorchBackend

pytest.importorskip("triton")

from kvpolicy.backends.triton import TritonBackend
from kvpolicy.backends.triton.kernels import order

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = TritonBackend()
EXAMPLES = settings(max_examples=12)
TABLES = cases(max_rows=20)


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Blocks and chunks so small that a table has several; what kernels do not write is NaN or a number far off."""
    kept = order.BLOCK, order.CHUNK
    order.BLOCK, order.CHUNK = 4, 8
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` returns
    yield
    torch.use_deterministic_algorithms(False)
    order.BLOCK, order.CHUNK = kept


def there(view: CacheView) -> CacheView:
    """On the device, every other slot of a wider table."""

    def strided(data: torch.Tensor) -> torch.Tensor:
        wide = torch.stack([data, data], dim=-1).flatten(-2).to(DEVICE)
        return wide[..., ::2]

    return replace(view, positions=strided(view.positions), valid=strided(view.valid))


def scores_of(case: Case) -> np.ndarray[Any, Any]:
    scores = case.rng.integers(-2, 3, case.numpy.shape).astype(np.float32)
    for infinite in (-np.inf, np.inf):
        scores[case.rng.random(scores.shape) < 0.15] = infinite
    return scores


@EXAMPLES
@given(TABLES, st.sampled_from(["float16", "float32"]), st.integers(0, 3), st.sampled_from(["none", "all", "each"]))
def test_the_best(case: Case, dtype: str, first: int, ends: str) -> None:
    scores, shape = scores_of(case), case.numpy.shape
    quota = case.rng.integers(0, shape[2] + 2, shape[:2])
    last = {"none": 0, "all": 2, "each": case.rng.integers(0, 4, shape[:2])}[ends]
    given = in_torch(last).to(DEVICE) if isinstance(last, np.ndarray) else last
    keep = OPS.top_k(in_torch(scores, dtype).to(DEVICE), in_torch(quota), there(case.torch), first=first, last=given)
    assert keep.dtype == torch.bool
    assert keep.tolist() == ORACLE.top_k(scores, quota, case.numpy, first=first, last=last).tolist()


@EXAMPLES
@given(TABLES)
def test_arrival_rank(case: Case) -> None:
    view = there(case.torch)
    assert OPS.arrival_rank(view).tolist() == ORACLE.arrival_rank(case.numpy).tolist()
    assert OPS.arrival_rank(view) is OPS.arrival_rank(view)
    known = replace(view, rank=OPS.arrival_rank(view) + 100)
    assert OPS.arrival_rank(known) is known.rank


@EXAMPLES
@given(TABLES, st.sampled_from([0.0, 0.2, 0.7, 1.0]))
def test_nearest_position(case: Case, share: float) -> None:
    keep = case.rng.random(case.numpy.shape) < share
    near = OPS.nearest_position(there(case.torch), in_torch(keep).to(DEVICE))
    assert near.dtype == torch.int64
    assert near.tolist() == ORACLE.nearest_position(case.numpy, keep & case.numpy.valid).tolist()


@EXAMPLES
@given(TABLES, st.integers(1, 3), st.sampled_from(["float16", "float32"]))
def test_segment_sum(case: Case, targets: int, dtype: str) -> None:
    shape = (*case.numpy.shape, targets)
    index, data = case.rng.integers(-1, shape[2], shape), case.rng.integers(-8, 8, shape) / 8
    sums = OPS.segment_sum(in_torch(data, dtype).to(DEVICE), in_torch(index).to(DEVICE))
    assert sums.dtype == getattr(torch, dtype)
    assert sums.tolist() == ORACLE.segment_sum(data, index).tolist()


def test_scores_that_are_nan_keep_as_many() -> None:
    valid = torch.tensor([[[False, True, True, True]]], device=DEVICE)
    places = torch.arange(4, device=DEVICE)[None, None]
    view = CacheView(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), places, valid, {})
    keep = OPS.top_k(torch.full((1, 1, 4), torch.nan, device=DEVICE), np.full((1, 1), 2), view)
    assert keep.tolist() == [[[False, False, True, True]]]


@EXAMPLES
@given(cases())
def test_long_tables_are_left_to_torch(case: Case) -> None:
    view, dense = there(case.torch), TorchBackend()
    scores, quota = in_torch(scores_of(case)).to(DEVICE), case.rng.integers(0, 5, case.numpy.shape[:2])
    keep = in_torch(case.rng.random(case.numpy.shape) < 0.5).to(DEVICE) & view.valid
    index = torch.where(keep, 0, -1)[..., None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "MOST_COMPARISONS", 0)
        for name in ("best", "nearest_arrival", "ranks", "sums"):
            patch.setattr(order, name, None)
        assert torch.equal(OPS.top_k(scores, quota, view, first=1), dense.top_k(scores, quota, view, first=1))
        assert torch.equal(OPS.arrival_rank(replace(view)), dense.arrival_rank(replace(view)))
        assert torch.equal(OPS.nearest_position(view, keep), dense.nearest_position(view, keep))
        ones = torch.ones_like(index, dtype=torch.float32)
        assert torch.equal(OPS.segment_sum(ones, index), dense.segment_sum(ones, index))


def test_other_dtypes_are_left_to_torch() -> None:
    places = torch.arange(3, device=DEVICE)[None, None]
    view = CacheView(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), places, places >= 0, {})
    scores = torch.tensor([[[1.0, 1.0 + 1e-12, 0.0]]], dtype=torch.float64, device=DEVICE)
    assert OPS.top_k(scores, np.full((1, 1), 1), view).tolist() == [[[False, True, False]]]
    sums = OPS.segment_sum(scores[..., None], torch.zeros(1, 1, 3, 1, dtype=torch.int64, device=DEVICE))
    assert sums.dtype == torch.float64
