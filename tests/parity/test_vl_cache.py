"""VL-Cache against its formulas."""

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
from driving import Request, drive, make_request, requests, rotary, splits, with_image
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import vl_cache


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    return {**draw(budgets()), "recent": draw(st.sampled_from([0.0, 0.1, 0.5]))}


@given(requests(max_prompt=30, max_steps=5, max_layers=3, images=True), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(vl_cache(**settings), request, rotate=rotary)
    agree(trace, request, reference.vl_cache, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2, images=True), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(vl_cache(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.vl_cache, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True, images=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(vl_cache(**settings), request)


@few
@given(requests(max_prompt=24, images=True), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(vl_cache(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True, images=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = request.tokens + spare
    everything_fits(vl_cache(keep=1.0) if share else vl_cache(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = with_image(make_request(prompt=1, steps=6, groups=2), 0, 1)
    trace = drive(vl_cache(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.vl_cache, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4}
    agree_in_half_precision(vl_cache(**settings), reference.vl_cache, settings, dtype, images=True)


@pytest.mark.parametrize("seed", range(4))
def test_layers_differ(seed: int) -> None:
    request = with_image(make_request(seed=seed, layers=3, heads=2, groups=2, dim=6, prompt=40, steps=2), 4, 32)
    request.queries[1] *= 8  # a sparse layer
    trace = drive(vl_cache(rows=9), request)
    agree(trace, request, reference.vl_cache, {"rows": 9})
    held = [len(layer[0][0].positions) for layer in trace.passes[0].tables]
    assert sum(held) == 27
    assert held[1] == min(held) < max(held)
