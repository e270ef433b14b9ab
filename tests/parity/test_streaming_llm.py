"""StreamingLLM against its formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from agreement import (
    agree,
    agree_in_half_precision,
    batch_rows_are_independent,
    chunks_make_no_difference,
    everything_fits,
    few,
)
from driving import Request, drive, make_request, requests, rotary, splits
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import streaming_llm


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    sinks = draw(st.integers(0, 5))
    if draw(st.booleans()):
        return {"keep": draw(st.floats(0.01, 1.0)), "sinks": sinks}
    return {"rows": draw(st.integers(max(sinks, 1), 45)), "sinks": sinks}


@given(requests(), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    agree(drive(streaming_llm(**settings), request), request, reference.streaming_llm, settings)


@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        agree(drive(streaming_llm(**settings), request, backend=backend), request, reference.streaming_llm, settings)


@given(requests(max_batch=3, padded=True, max_prompt=24), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(streaming_llm(**settings), request)


@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(streaming_llm(**settings), request, data.draw(splits(request.prompt)))


@given(requests(max_batch=2, padded=True, max_prompt=12), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = max(request.tokens + spare, 4)
    everything_fits(streaming_llm(keep=1.0) if share else streaming_llm(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=9, groups=2)
    agree(drive(streaming_llm(keep=keep), request), request, reference.streaming_llm, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    agree_in_half_precision(streaming_llm(keep=0.4), reference.streaming_llm, {"keep": 0.4}, dtype)


@few
@given(requests(max_prompt=20, max_batch=2, even=True), choices())
def test_slots_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    settings["positions"] = "slots"
    for backend in ("numpy", "torch"):
        trace = drive(streaming_llm(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.streaming_llm, settings)


@few
@given(requests(max_batch=3, padded=True, max_prompt=20, even=True), choices())
def test_a_padded_batch_row_is_the_row_alone_in_slots(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(streaming_llm(**settings, positions="slots"), request)


def test_slots_read_as_a_text_of_what_is_left() -> None:
    """With the rows 0, 1 and the last three, the next token reads what it would read at the end of a text of six."""
    request = make_request(prompt=12, steps=1, heads=1)
    policy = streaming_llm(rows=5, sinks=2, positions="slots")
    read = drive(policy, request, rotate=rotary).passes[1].outputs[0, 0, 0, 0]
    left = [0, 1, 9, 10, 11, 12]
    slots = np.arange(6)
    keys = rotary(request.keys[0, 0, 0, left], slots - left)
    query = rotary(request.queries[0, 0, 0, 12], np.array(5 - 12))
    powers = np.exp(request.scale * keys @ query)
    np.testing.assert_allclose(read, powers @ request.values[0, 0, 0, left] / powers.sum(), rtol=1e-12)


def test_by_hand() -> None:
    request = make_request(prompt=9, steps=2)
    after = [one.tables[0][0][0].positions for one in drive(streaming_llm(rows=5, sinks=2), request).passes]
    assert after == [[0, 1, 6, 7, 8], [0, 1, 7, 8, 9], [0, 1, 8, 9, 10]]


def test_sinks_stay_above_a_small_budget() -> None:
    # keep=0.2 of 10 tokens is 2 rows; the 4 sinks stay and leave no window.
    request = make_request(prompt=10, steps=1)
    trace = drive(streaming_llm(keep=0.2), request)
    assert trace.passes[-1].tables[0][0][0].positions == [0, 1, 2, 3]
    assert trace.session.report().exceeded == 2 * (4 - 2)
