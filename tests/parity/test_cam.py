"""CaM against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import reference
from agreement import (
    agree,
    agree_in_half_precision,
    batch_rows_are_independent,
    budgets,
    chunks_make_no_difference,
    everything_fits,
    few,
)
from driving import Request, drive, make_request, requests, rotary, splits
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import cam

COLUMNS = ("count", "mass")


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    sinks, count = draw(st.integers(0, 4)), draw(st.sampled_from([1, 2, 32]))
    recent, seed = draw(st.sampled_from([0.0, 0.5, 0.8])), draw(st.integers(0, 2**20))
    return {**draw(budgets(max(sinks, 1))), "sinks": sinks, "recent": recent, "count": count, "seed": seed}


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(cam(**settings), request, rotate=rotary)
    agree(trace, request, reference.cam, settings, COLUMNS)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(cam(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.cam, settings, COLUMNS)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(cam(**settings), request)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(cam(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = max(request.tokens + spare, 4)
    everything_fits(cam(keep=1.0) if share else cam(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(cam(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.cam, {"keep": keep}, COLUMNS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4, "count": 2}
    agree_in_half_precision(cam(**settings), reference.cam, settings, dtype)
