"""KVMerger against its formulas."""

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

from kvpolicy import kv_merger


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    sigma, epsilon = draw(st.sampled_from([None, 0.5, 5.0])), draw(st.sampled_from([None, -0.5, 0.0, 0.75]))
    values = draw(st.sampled_from(["mean", "scaled"]))
    return {**draw(budgets()), "sigma": sigma, "epsilon": epsilon, "values": values}


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(kv_merger(**settings), request, rotate=rotary)
    agree(trace, request, reference.kv_merger, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(kv_merger(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.kv_merger, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(kv_merger(**settings), request, merged=1e-12)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(kv_merger(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = request.tokens + spare
    everything_fits(kv_merger(keep=1.0) if share else kv_merger(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(kv_merger(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.kv_merger, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4}
    agree_in_half_precision(kv_merger(**settings), reference.kv_merger, settings, dtype)


@pytest.mark.parametrize("values", ["mean", "scaled"])
def test_clusters_fill_the_budget_and_count_every_token(values: str) -> None:
    request = make_request(layers=2, heads=3, groups=2, dim=6, prompt=40, steps=3)
    for rows in (1, 2, 9, 39):
        settings = {"rows": rows, "values": values}
        trace = drive(kv_merger(**settings), request)
        agree(trace, request, reference.kv_merger, settings)
        for layer in trace.passes[0].tables:
            for table in layer[0]:
                assert len(table.positions) == rows
                assert table.columns["count"].sum() == 40


def test_with_a_threshold_the_size_is_what_the_keys_give() -> None:
    request = make_request(heads=1, prompt=8, steps=0, dim=2)
    request.keys[0, 0, 0] = [[1, 0]] * 4 + [[0, 1]] * 4
    for epsilon, due in ((0.75, 2), (-0.5, 1), (1.5, 8)):
        for backend in ("numpy", "torch"):
            trace = drive(kv_merger(rows=3, epsilon=epsilon), request, backend=backend)
            assert len(trace.passes[0].tables[0][0][0].positions) == due
