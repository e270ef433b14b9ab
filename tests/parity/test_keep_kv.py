"""KeepKV against its formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
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

from kvpolicy import keep_kv

COLUMNS = ("count", "mass")


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    return {**draw(budgets(4)), "threshold": draw(st.sampled_from([-1.0, 0.0, 0.5, 0.8, 1.0]))}


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(keep_kv(**settings), request, rotate=rotary)
    agree(trace, request, reference.keep_kv, settings, COLUMNS)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(keep_kv(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.keep_kv, settings, COLUMNS)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(keep_kv(**settings), request, merged=1e-12)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(keep_kv(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = max(request.tokens + spare, 4)
    everything_fits(keep_kv(keep=1.0) if share else keep_kv(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(keep_kv(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.keep_kv, {"keep": keep}, COLUMNS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4}
    agree_in_half_precision(keep_kv(**settings), reference.keep_kv, settings, dtype)


def test_merging_does_not_change_what_the_latest_query_reads() -> None:
    """The last query asked again, after the merge: nothing is dropped, and the scale is within its limits."""
    request = make_request(heads=2, dim=4, prompt=20, steps=0)
    base = np.array([1.0, 0.5, -0.5, 1.0])
    request.keys[:] = base + request.keys / 5
    request.queries[:] = base + request.queries / 3
    for backend in ("numpy", "torch"):
        done = drive(keep_kv(rows=8, threshold=-1.0), request, backend=backend).passes[0]
        for h, table in enumerate(done.tables[0][0]):
            assert len(table.positions) == 8
            logits = request.scale * table.keys @ request.queries[0, 0, h, -1] + np.log(
                table.columns["count"], dtype=np.float64
            )
            weights = np.exp(logits - logits.max())
            read = weights @ table.values / weights.sum()
            np.testing.assert_allclose(read, done.outputs[0, 0, h, -1], rtol=1e-9)
