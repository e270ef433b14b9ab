"""Elastic Cache against its formulas."""

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
from driving import Request, drive, make_request, requests, splits
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import elastic_cache


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of the recipe."""
    first, last = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    if draw(st.booleans()):
        budget: dict[str, Any] = {"keep": draw(st.floats(0.01, 1.0))}
    else:
        budget = {"rows": draw(st.integers(max(first + last, 1), 45))}
    return {**budget, "first": first, "last": last, "distance": draw(st.sampled_from([0, 1, 2, 5, 25]))}


@st.composite
def ablations(draw: st.DrawFn) -> dict[str, Any]:
    """What the paper compares its choices with."""
    return {
        **draw(choices()),
        "merge": draw(st.sampled_from(["mean", "evict", "cluster"])),
        "statistic": draw(st.sampled_from(["sum", "mean", "moving"])),
        "sets": draw(st.sampled_from(["layer", "head", "shared"])),
        "discard": draw(st.sampled_from(["fixed", "recent", "frequency"])),
    }


@given(requests(), choices())
def test_torch_is_the_formula(request: Request, settings: dict[str, Any]) -> None:
    trace = drive(elastic_cache(**settings), request)
    agree(trace, request, reference.elastic_cache, settings)
    for layer in trace.passes[0].tables:
        for table in layer[0]:
            protected = len(table.positions) <= settings["first"] + settings["last"]
            assert table.columns["count"].sum() == (len(table.positions) if protected else request.prompt)


@given(requests(max_prompt=9, max_steps=4, max_batch=2), choices())
def test_both_backends_are_the_formula(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        agree(drive(elastic_cache(**settings), request, backend=backend), request, reference.elastic_cache, settings)


@given(requests(max_prompt=24, max_steps=5, max_layers=3), ablations())
def test_the_ablations_are_their_formulas(request: Request, settings: dict[str, Any]) -> None:
    agree(drive(elastic_cache(**settings), request), request, reference.elastic_cache, settings)


@few
@given(requests(max_prompt=9, max_steps=4, max_batch=2), ablations())
def test_the_ablations_are_their_formulas_on_both_backends(request: Request, settings: dict[str, Any]) -> None:
    for backend in ("numpy", "torch"):
        agree(drive(elastic_cache(**settings), request, backend=backend), request, reference.elastic_cache, settings)


@few
@given(requests(max_batch=3, padded=True, max_prompt=20), ablations())
def test_a_padded_batch_row_is_the_row_alone_in_the_ablations(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(elastic_cache(**settings), request)


@few
@given(requests(max_prompt=20), ablations(), st.data())
def test_a_prompt_in_chunks_is_the_prompt_in_the_ablations(
    request: Request, settings: dict[str, Any], data: st.DataObject
) -> None:
    chunks_make_no_difference(elastic_cache(**settings), request, data.draw(splits(request.prompt)))


@given(requests(max_batch=3, padded=True, max_prompt=24), choices())
def test_a_padded_batch_row_is_the_row_alone(request: Request, settings: dict[str, Any]) -> None:
    batch_rows_are_independent(elastic_cache(**settings), request)


@given(requests(max_prompt=24, max_steps=4), choices(), st.data())
def test_a_prompt_in_chunks_is_the_prompt(request: Request, settings: dict[str, Any], data: st.DataObject) -> None:
    chunks_make_no_difference(elastic_cache(**settings), request, data.draw(splits(request.prompt)))


@given(requests(max_batch=2, padded=True, max_prompt=12), st.integers(0, 3), st.booleans())
def test_a_budget_of_everything_changes_nothing(request: Request, spare: int, share: bool) -> None:
    rows = max(request.tokens + spare, 2)
    everything_fits(elastic_cache(keep=1.0) if share else elastic_cache(rows=rows), request)


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 1.0])
def test_a_prompt_of_one_token(keep: float) -> None:
    request = make_request(prompt=1, steps=6, groups=2)
    agree(drive(elastic_cache(keep=keep), request), request, reference.elastic_cache, {"keep": keep})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("merge", ["mean", "cluster"])
def test_half_precision(dtype: str, merge: str) -> None:
    settings = {"keep": 0.4, "distance": 3, "merge": merge}
    agree_in_half_precision(elastic_cache(**settings), reference.elastic_cache, settings, dtype)


def test_by_hand() -> None:
    # Keys 0, queries 0: query i pays 1/(i+1) to each row it sees, so s_0 > s_1 > ... and keep=0.5 of 8 rows keeps
    # 0, 1, 2 and the last, 7. Rows 3 to 6 go to 2, for 7 is protected. Decode: p = 4 - 2 = 2 stay, of the others the
    # latest.
    request = make_request(prompt=8, steps=2, heads=1, dim=1, kind="flat")
    values = np.arange(10.0).reshape(1, 1, 1, 10, 1)
    request = Request(request.queries, request.keys, values, request.prompt, request.scale)
    after = [one.tables[0][0][0] for one in drive(elastic_cache(keep=0.5, distance=2), request).passes]
    assert after[0].positions == [0, 1, 2, 7]
    assert after[0].values[:, 0].tolist() == [0.0, 1.0, 4.0, 7.0]
    assert after[0].columns["count"].tolist() == [1, 1, 5, 1]
    assert after[1].positions == [0, 1, 7, 8]  # round(4.5) = 4: half to even
    assert after[2].positions == [0, 1, 7, 8, 9]
