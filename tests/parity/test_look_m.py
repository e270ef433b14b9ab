"""LOOK-M against its formulas."""

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

from kvpolicy import look_m


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    merge = draw(st.sampled_from(["pivotal", "average", "weighted"]))
    return {**draw(budgets()), "merge": merge, "recent": draw(st.sampled_from([0.0, 0.5, 1.0]))}


@given(requests(max_prompt=30, max_steps=5, max_layers=3, images=True), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(look_m(**settings), request, rotate=rotary)
    agree(trace, request, reference.look_m, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2, images=True), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(look_m(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.look_m, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True, images=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(look_m(**settings), request, merged=1e-12)


@few
@given(requests(max_prompt=24, images=True), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(look_m(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True, images=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = request.tokens + spare
    everything_fits(look_m(keep=1.0) if share else look_m(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = with_image(make_request(prompt=1, steps=6, groups=2), 0, 1)
    trace = drive(look_m(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.look_m, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4}
    agree_in_half_precision(look_m(**settings), reference.look_m, settings, dtype, images=True)


@pytest.mark.parametrize("merge", ["pivotal", "average", "weighted"])
def test_text_stays_and_images_compete(merge: str) -> None:
    request = with_image(make_request(layers=2, groups=2, prompt=40, steps=3), 4, 34)
    settings = {"rows": 16, "merge": merge}
    trace = drive(look_m(**settings), request)
    agree(trace, request, reference.look_m, settings)
    for layer in trace.passes[0].tables:
        for table in layer[0]:
            assert {*range(4), *range(34, 40)} <= set(table.positions)
            assert len(table.positions) == 16
            assert table.columns["count"].sum() == 40


def test_text_beyond_the_budget_stays_and_is_reported() -> None:
    request = with_image(make_request(heads=2, prompt=20, steps=1), 4, 8)
    trace = drive(look_m(rows=10), request)
    assert all(len(table.positions) == 16 for table in trace.passes[0].tables[0][0])
    assert trace.session.report().exceeded == 2 * (16 - 10)
