"""PyramidKV against its formulas."""

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

from kvpolicy import pyramid_kv


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    window, beta = draw(st.sampled_from([1, 2, 8])), draw(st.sampled_from([1.0, 3.0, 20.0]))
    kernel = draw(st.sampled_from([1, 7]))
    return {**draw(budgets()), "window": window, "kernel": kernel, "beta": beta}


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(pyramid_kv(**settings), request, rotate=rotary)
    agree(trace, request, reference.pyramid_kv, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(pyramid_kv(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.pyramid_kv, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(pyramid_kv(**settings), request)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(pyramid_kv(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = request.tokens + spare
    everything_fits(pyramid_kv(keep=1.0) if share else pyramid_kv(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(pyramid_kv(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.pyramid_kv, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4, "window": 2}
    agree_in_half_precision(pyramid_kv(**settings), reference.pyramid_kv, settings, dtype)


@pytest.mark.parametrize("layers", [2, 3, 4, 7])
@pytest.mark.parametrize("rows", [10, 17, 24])
def test_a_prompt_long_enough_for_a_pyramid(layers: int, rows: int) -> None:
    request = make_request(layers=layers, heads=2, groups=2, prompt=48, steps=1)
    trace = drive(pyramid_kv(rows=rows), request)
    agree(trace, request, reference.pyramid_kv, {"rows": rows})
    held = [len(table.positions) for layer in trace.passes[0].tables for table in layer[0]]
    assert sum(held) == rows * layers * 2
    assert held == sorted(held, reverse=True)
    assert held[0] > held[-1]
