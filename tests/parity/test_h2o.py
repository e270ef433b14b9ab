"""H2O against its formulas."""

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
)
from driving import Request, drive, make_request, requests, splits
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import h2o

COLUMNS = ("count", "mass")


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    if draw(st.booleans()):
        budget: dict[str, Any] = {"keep": draw(st.floats(0.01, 1.0))}
    else:
        budget = {"rows": draw(st.integers(1, 45))}
    return {**budget, "recent": draw(st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]))}


@given(requests(), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    agree(drive(h2o(**settings), request), request, reference.h2o, settings, COLUMNS)


@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        agree(drive(h2o(**settings), request, backend=backend), request, reference.h2o, settings, COLUMNS)


@given(requests(max_batch=3, padded=True, max_prompt=24), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(h2o(**settings), request)


@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(h2o(**settings), request, data.draw(splits(request.prompt)))


@given(requests(max_batch=2, padded=True, max_prompt=12), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    everything_fits(h2o(keep=1.0) if share else h2o(rows=request.tokens + spare), request)


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    agree(drive(h2o(keep=keep), request), request, reference.h2o, {"keep": keep}, COLUMNS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    agree_in_half_precision(h2o(keep=0.4), reference.h2o, {"keep": 0.4}, dtype)


def test_a_heavy_row_outlives_everything_and_ties_go_to_the_later() -> None:
    request = make_request(prompt=12, steps=8, heads=2, groups=2, kind="dominant", seed=3)
    heavy = int(np.argmax(request.keys[0, 0, 0, :, 0]))
    for number, done in enumerate(drive(h2o(rows=6, recent=0.5), request).passes):
        newest = 11 + number
        for table in done.tables[0][0]:
            assert heavy in table.positions
            assert table.positions[-3:] == [newest - 2, newest - 1, newest]


def test_by_hand() -> None:
    # Keys and queries 0: after the prompt s = H_6 - H_j, falling with j. rows=3, recent=0.5 keeps floor(1.5) = 1 recent
    # row and the 2 heaviest. Each decode step reads 4 rows at 1/4 each.
    request = make_request(prompt=6, steps=2, heads=1, dim=1, kind="flat")
    after = [one.tables[0][0][0] for one in drive(h2o(rows=3), request).passes]
    assert [table.positions for table in after] == [[0, 1, 5], [0, 1, 6], [0, 1, 7]]
    whole = [sum(1 / i for i in range(j + 1, 7)) for j in range(6)]
    np.testing.assert_allclose(after[2].columns["mass"], [whole[0] + 0.5, whole[1] + 0.5, 0.25], rtol=1e-12)
