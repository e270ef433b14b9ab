"""KNorm against its formulas."""

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

from kvpolicy import k_norm


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    return draw(budgets())


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(k_norm(**settings), request, rotate=rotary)
    agree(trace, request, reference.k_norm, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(k_norm(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.k_norm, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(k_norm(**settings), request)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(k_norm(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = request.tokens + spare
    everything_fits(k_norm(keep=1.0) if share else k_norm(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(k_norm(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.k_norm, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4}
    agree_in_half_precision(k_norm(**settings), reference.k_norm, settings, dtype)


def test_by_hand() -> None:
    request = make_request(prompt=4, steps=1, heads=1, dim=2)
    request.keys[0, 0, 0] = [[3, 0], [0, 1], [-1, 0], [0, 2], [0.5, 0]]
    for backend in ("numpy", "torch"):
        after = [one.tables[0][0][0].positions for one in drive(k_norm(rows=2), request, backend=backend).passes]
        assert after == [[1, 2], [2, 4]]
