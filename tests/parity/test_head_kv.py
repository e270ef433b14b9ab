"""HeadKV against its formulas."""

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

from kvpolicy import head_kv


def choices(request: Request, data: st.DataObject) -> dict[str, Any]:
    """Arguments of the recipe: a table of the model's shape."""
    layers, heads = request.keys.shape[0], request.keys.shape[2]
    weights = st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0])
    cells = data.draw(st.lists(weights, min_size=layers * heads, max_size=layers * heads).filter(any))
    table = tuple(tuple(line) for line in np.reshape(cells, (layers, heads)).tolist())
    window, kernel = data.draw(st.sampled_from([1, 5, 32])), data.draw(st.sampled_from([1, 7]))
    return {**data.draw(budgets()), "table": table, "window": window, "kernel": kernel}


@given(requests(max_prompt=40, max_steps=5, max_layers=3), st.data())
def test_torch_is_the_formula(request: Request, data: st.DataObject) -> None:
    settings = choices(request, data)
    agree(drive(head_kv(**settings), request, rotate=rotary), request, reference.head_kv, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), st.data())
def test_both_backends_are_the_formula(request: Request, data: st.DataObject) -> None:
    settings = choices(request, data)
    for backend in ("numpy", "torch"):
        agree(drive(head_kv(**settings), request, backend=backend), request, reference.head_kv, settings)


@few
@given(requests(max_prompt=20, max_steps=4, max_batch=3, padded=True), st.data())
def test_a_padded_batch_row_is_the_row_alone(request: Request, data: st.DataObject) -> None:
    batch_rows_are_independent(head_kv(**choices(request, data)), request)


@few
@given(requests(max_prompt=24), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, data: st.DataObject) -> None:
    chunks_make_no_difference(head_kv(**choices(request, data)), request, data.draw(splits(request.prompt)))


@few
@given(requests(max_prompt=12, max_batch=2, padded=True), st.data())
def test_a_budget_of_everything_changes_nothing(request: Request, data: st.DataObject) -> None:
    table = choices(request, data)["table"]
    for size in ({"keep": 1.0}, {"rows": request.tokens}):
        everything_fits(head_kv(**size, table=table), request)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    settings = {"keep": keep, "table": ((1, 3),)}
    agree(drive(head_kv(**settings), request), request, reference.head_kv, settings)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    settings = {"keep": 0.4, "table": ((1, 2), (3, 4))}
    agree_in_half_precision(head_kv(**settings), reference.head_kv, settings, dtype)


def test_heads_hold_what_the_table_says() -> None:
    request = make_request(layers=2, heads=2, prompt=70, steps=2)
    settings = {"rows": 20, "table": ((1, 0), (2, 5))}
    trace = drive(head_kv(**settings), request)
    agree(trace, request, reference.head_kv, settings)
    held = [[len(table.positions) for table in layer[0]] for layer in trace.passes[0].tables]
    assert held == [[10, 0], [20, 50]]


@pytest.mark.parametrize(
    ("table", "rows", "due"), [((1, 4, 4), 5, [2, 7, 6]), ((2, 2, 5), 1, [1, 1, 1]), ((2, 2, 5), 4, [3, 3, 6])]
)
def test_equal_remainders_go_to_the_lower_head(table: tuple[int, ...], rows: int, due: list[int]) -> None:
    # Of 15 rows 1/9, 4/9 and 4/9: 1.67, 6.67 and 6.67. Two rows are left over, and all remainders are equal.
    request = make_request(layers=1, heads=3, prompt=20, steps=0)
    trace = drive(head_kv(rows=rows, table=(table,)), request)
    assert [len(one.positions) for one in trace.passes[0].tables[0][0]] == due
