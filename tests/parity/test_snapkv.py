"""SnapKV against its formulas."""

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

from kvpolicy import snapkv


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    window, kernel = draw(st.sampled_from([1, 2, 5, 32])), draw(st.sampled_from([1, 3, 7]))
    pooling = draw(st.sampled_from(["mean", "max"]))
    return {**draw(budgets()), "window": window, "kernel": kernel, "pooling": pooling}


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(snapkv(**settings), request, rotate=rotary)
    agree(trace, request, reference.snapkv, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(snapkv(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.snapkv, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(snapkv(**settings), request)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(snapkv(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = request.tokens + spare
    everything_fits(snapkv(keep=1.0) if share else snapkv(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(snapkv(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.snapkv, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4, "window": 4, "kernel": 3}
    agree_in_half_precision(snapkv(**settings), reference.snapkv, settings, dtype)


def test_by_hand() -> None:
    # One row takes everything: with the window of two, it and its neighbours fill the budget.
    request = make_request(prompt=10, steps=2, heads=1, dim=2)
    request.queries[:], request.keys[:] = 1.0, 0.0
    request.keys[..., 3, :] = 50.0
    for backend in ("numpy", "torch"):
        trace = drive(snapkv(rows=5, window=2, kernel=3), request, backend=backend)
        after = [one.tables[0][0][0].positions for one in trace.passes]
        assert after == [[2, 3, 4, 8, 9], [2, 3, 4, 8, 9, 10], [2, 3, 4, 8, 9, 10, 11]]


def test_defaults() -> None:
    request = make_request(layers=2, prompt=60, steps=1, groups=2)
    for rows in (16, 40):
        agree(drive(snapkv(rows=rows), request), request, reference.snapkv, {"rows": rows})
