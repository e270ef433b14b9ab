"""Expected Attention against its formulas."""

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

from kvpolicy import expected_attention


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    first, window = draw(st.integers(0, 4)), draw(st.sampled_from([1, 4, 128]))
    future = draw(st.sampled_from([1, 8, 512]))
    return {**draw(budgets(max(first, 1))), "first": first, "window": window, "future": future}


@given(requests(max_prompt=30, max_steps=5, max_layers=3, even=True), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(expected_attention(**settings), request, rotate=rotary)
    agree(trace, request, reference.expected_attention, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2, even=True), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(expected_attention(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.expected_attention, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True, even=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(expected_attention(**settings), request)


@few
@given(requests(max_prompt=24, even=True), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(expected_attention(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True, even=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = max(request.tokens + spare, 4)
    everything_fits(expected_attention(keep=1.0) if share else expected_attention(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(expected_attention(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.expected_attention, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4}
    agree_in_half_precision(expected_attention(**settings), reference.expected_attention, settings, dtype)


def test_a_prompt_longer_than_the_window() -> None:
    request = make_request(layers=2, heads=1, groups=2, prompt=140, steps=1)
    trace = drive(expected_attention(keep=0.2), request, rotate=rotary)
    agree(trace, request, reference.expected_attention, {"keep": 0.2})
