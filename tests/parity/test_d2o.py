"""D2O against its formulas."""

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

from kvpolicy import d2o

COLUMNS = ("count", "mass")


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    first, recent = draw(st.integers(0, 4)), draw(st.sampled_from([0.0, 0.5, 0.8]))
    beta = draw(st.sampled_from([0.0, 0.5, 0.7, 1.0]))
    return {**draw(budgets(max(first, 1))), "first": first, "recent": recent, "beta": beta}


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(d2o(**settings), request, rotate=rotary)
    agree(trace, request, reference.d2o, settings, COLUMNS)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(d2o(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.d2o, settings, COLUMNS)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(d2o(**settings), request, merged=1e-12)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(d2o(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = max(request.tokens + spare, 4)
    everything_fits(d2o(keep=1.0) if share else d2o(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(d2o(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.d2o, {"keep": keep}, COLUMNS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4}
    agree_in_half_precision(d2o(**settings), reference.d2o, settings, dtype)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_layers_differ_and_steps_fold_one_row_a_head(seed: int) -> None:
    request = make_request(seed=seed, layers=3, heads=3, groups=2, dim=6, prompt=36, steps=10)
    request.queries[1] *= 3  # a layer that looks hard at few rows
    settings = {"rows": 12}
    trace = drive(d2o(**settings), request)
    agree(trace, request, reference.d2o, settings, COLUMNS)
    held = [[len(table.positions) for table in layer[0]] for layer in trace.passes[0].tables]
    assert sum(map(sum, held)) == 12 * 9
    assert len({tuple(layer) for layer in held}) > 1
    for done in trace.passes[1:]:
        assert [[len(table.positions) for table in layer[0]] for layer in done.tables] == held


def test_exempt_layers_keep_everything_of_the_prompt() -> None:
    request = make_request(layers=3, heads=2, groups=2, dim=6, prompt=24, steps=4)
    settings = {"keep": 0.6, "exempt": (1,)}
    trace = drive(d2o(**settings), request)
    agree(trace, request, reference.d2o, settings, COLUMNS)
    held = [[len(table.positions) for table in layer[0]] for layer in trace.passes[0].tables]
    assert held[1] == [24, 24]
    assert sum(map(sum, held)) == 14 * 6


def test_the_gate_belongs_to_the_request() -> None:
    one, other = make_request(seed=1, steps=6), make_request(seed=2, steps=6)
    used = drive(d2o(rows=5), one).session
    used.clear()
    again = drive(d2o(rows=5), other, session=used)
    agree(again, other, reference.d2o, {"rows": 5}, COLUMNS)
