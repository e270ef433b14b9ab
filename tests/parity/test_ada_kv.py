"""AdaKV against its formulas."""

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

from kvpolicy import ada_kv


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    window, kernel = draw(st.sampled_from([1, 2, 5, 32])), draw(st.sampled_from([1, 3, 7]))
    floor = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    return {**draw(budgets()), "window": window, "kernel": kernel, "floor": floor}


@given(requests(max_prompt=30, max_steps=5, max_layers=3), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(ada_kv(**settings), request, rotate=rotary)
    agree(trace, request, reference.ada_kv, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        trace = drive(ada_kv(**settings), request, backend=backend, rotate=rotary)
        agree(trace, request, reference.ada_kv, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(ada_kv(**settings), request)


@few
@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(ada_kv(**settings), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = request.tokens + spare
    everything_fits(ada_kv(keep=1.0) if share else ada_kv(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    trace = drive(ada_kv(keep=keep), request, rotate=rotary)
    agree(trace, request, reference.ada_kv, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4, "window": 4, "kernel": 3}
    agree_in_half_precision(ada_kv(**settings), reference.ada_kv, settings, dtype)


@pytest.mark.parametrize("rows", [5, 9, 20])
@pytest.mark.parametrize("seed", range(4))
def test_heads_compete(rows: int, seed: int) -> None:
    request = make_request(seed=seed, layers=2, heads=4, prompt=48, steps=2)
    request.keys[:, :, 1] *= 3  # a head that looks hard at few rows
    settings = {"rows": rows, "window": 3, "kernel": 1}
    trace = drive(ada_kv(**settings), request)
    agree(trace, request, reference.ada_kv, settings)
    for layer in trace.passes[0].tables:
        held = [len(table.positions) for table in layer[0]]
        assert sum(held) == 4 * rows
        assert len(set(held)) > 1


@pytest.mark.parametrize(
    ("rows", "counts", "due"),
    [(3, (1, 2, 6), [2, 2, 5]), (5, (3, 8, 4), [4, 7, 4]), (4, (2, 3, 7), [3, 3, 6])],
)
def test_equal_remainders_go_to_the_lower_head(rows: int, counts: tuple[int, ...], due: list[int]) -> None:
    # Of the 9 best rows of three heads 1, 2 and 6: shares 0.8 * 1 + 0.2 * 3 = 1.4, 2.2 and 5.4. One row is left over.
    request = make_request(layers=1, heads=3, prompt=12, steps=0, dim=1)
    request.queries[:], request.keys[:] = 1.0, 0.0
    for head, count in enumerate(counts):
        request.keys[0, 0, head, : count - 1] = 20.0  # beside the row of the window
    for backend in ("numpy", "torch"):
        trace = drive(ada_kv(rows=rows, window=1, kernel=1), request, backend=backend)
        assert [len(table.positions) for table in trace.passes[0].tables[0][0]] == due
