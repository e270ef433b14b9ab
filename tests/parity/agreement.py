"""What each parity test asks of a policy, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
from driving import (
    Arr,
    PassTrace,
    Request,
    Table,
    Trace,
    drive,
    make_request,
    only,
    rotary,
    rounded,
    same_tables,
    to,
)
from hypothesis import strategies as st
from reference import Head, Inputs, Outcome, UndecidedError

from kvpolicy import Policy, full

__all__ = [
    "agree",
    "agree_in_half_precision",
    "batch_rows_are_independent",
    "budgets",
    "chunks_make_no_difference",
    "everything_fits",
    "few",
    "inputs_of",
]

Simulate = Callable[..., list[Outcome]]


def budgets(least: int = 1) -> st.SearchStrategy[dict[str, Any]]:
    """A share of the tokens, or a number of rows: from the least to more than there are."""
    share = st.floats(0.01, 1.0).map(lambda keep: {"keep": keep})
    rows = st.integers(least, 45).map(lambda rows: {"rows": rows})
    return share | rows


# Beside a test that tries more.
few = hypothesis.settings(max_examples=max(hypothesis.settings.default.max_examples // 3, 1))


def agree(
    trace: Trace,
    request: Request,
    simulate: Simulate,
    settings: dict[str, Any],
    columns: Sequence[str] = ("count",),
    *,
    tolerance: float = 1e-12,
    loose: float = 1e-10,
    store: Callable[[Arr], Arr] = np.asarray,
) -> None:
    """A trace of an unpadded batch against the formulas, pass by pass: positions exact, K/V 1e-12.

    ``store`` is what the cache's dtype does to a vector. ``tolerance`` is for vectors, ``loose`` for what is summed
    over them: outputs and columns.
    """
    for b in range(request.keys.shape[1]):
        inputs = replace(inputs_of(request, b), store=store, exact_sums=trace.session.ops.name == "numpy")
        try:
            expected = simulate(inputs, **settings)
        except UndecidedError:
            if hypothesis.currently_in_test_context():
                hypothesis.reject()
            raise
        for done, due in zip(trace.passes, expected, strict=True):
            np.testing.assert_allclose(done.outputs[:, b], due.outputs, rtol=loose, atol=loose)
            for layer, heads in enumerate(due.layers):
                for table, rows in zip(done.tables[layer][b], heads, strict=True):
                    agree_on_rows(table, rows, columns, tolerance, loose)


def agree_in_half_precision(
    policy: Policy, simulate: Simulate, settings: dict[str, Any], dtype: str, *, images: bool = False
) -> None:
    """What a model computes in half precision is scored and merged in full, and only then rounded to be stored."""

    def store(vector: Arr) -> Arr:
        return to("torch", vector, dtype).double().numpy()

    step = 2.0**-10 if dtype == "float16" else 2.0**-7
    for kind in ("random", "flat", "dominant"):
        request = make_request(seed=5, layers=2, heads=2, groups=2, dim=8, prompt=24, steps=5, kind=kind)
        if images:
            request = replace(request, segment=np.array([[0] * 3 + [1] * 16 + [0] * 10]))
        request = rounded(request, dtype)
        trace = drive(policy, request, dtype=dtype, rotate=rotary)
        try:
            agree(trace, request, simulate, settings, tolerance=2 * step, loose=8 * step, store=store)
        except UndecidedError:
            assert kind == "flat", "only where every query pays all rows the same, equal sums are to be expected"


def agree_on_rows(table: Table, rows: Head, columns: Sequence[str], tolerance: float, loose: float) -> None:
    """One head's table against the rows that the formulas keep."""
    assert table.positions == [row.position for row in rows]
    for mine, due in ((table.keys, [row.key for row in rows]), (table.values, [row.value for row in rows])):
        np.testing.assert_allclose(mine, np.reshape(due, mine.shape), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(table.columns["count"], [row.count for row in rows], rtol=1e-6)
    for name in set(columns) - {"count"}:
        np.testing.assert_allclose(table.columns[name], [getattr(row, name) for row in rows], rtol=loose, atol=loose)


def inputs_of(request: Request, b: int) -> Inputs:
    """One row of an unpadded batch."""
    return Inputs(
        request.queries[:, b],
        request.keys[:, b],
        request.values[:, b],
        request.prompt,
        request.scale,
        None if request.segment is None else request.segment[b],
    )


def batch_rows_are_independent(policy: Policy, request: Request, *, merged: float = 0.0) -> None:
    """Every row of a left-padded batch gives, to the bit, the table that it gives alone, and reads the same.

    ``merged`` is a tolerance for rows with others in them: a matrix product that weighs them, such as the similarity of
    keys, is the same in every batch only up to rounding.
    """
    together = drive(policy, request, rotate=rotary)
    for b, left in enumerate(request.left):
        alone = drive(policy, request.alone(b), rotate=rotary)
        for whole, due in zip(together.passes, alone.passes, strict=True):
            mine = only(whole, b, due.outputs.shape[3])
            same_kept_rows(mine, due, shift=left, merged=merged)
            np.testing.assert_allclose(mine.outputs, due.outputs, rtol=1e-12, atol=1e-12)


def chunks_make_no_difference(policy: Policy, request: Request, chunks: Sequence[int]) -> None:
    """A prompt in chunks ends in the table of the prompt as a whole, is compacted once, and reads the same."""
    whole = drive(policy, request, rotate=rotary)
    parts = drive(policy, request, chunks=chunks, rotate=rotary)
    steps = request.tokens - request.prompt
    pieces = parts.passes[: len(chunks)]
    for done, tokens in zip(pieces[:-1], np.cumsum(chunks), strict=False):
        held = {len(table.positions) for layer in done.tables for heads in layer for table in heads}
        assert held == {tokens}, "a chunk of a prompt that goes on is not compacted"
    outputs = np.concatenate([piece.outputs for piece in pieces], axis=3)
    np.testing.assert_allclose(outputs, whole.passes[0].outputs, rtol=1e-12, atol=1e-12)
    for a, b in zip(parts.passes[-steps - 1 :], whole.passes[-steps - 1 :], strict=True):
        same_tables(a, b, tolerance=1e-12)


def everything_fits(policy: Policy, request: Request) -> None:
    """A budget that nothing exceeds changes no bit of any row and no output."""
    mine, plain = drive(policy, request, rotate=rotary), drive(full(), request)
    for a, b in zip(mine.passes, plain.passes, strict=True):
        same_kept_rows(a, b)
        assert a.outputs.tobytes() == b.outputs.tobytes()
    for layer, b, h in np.ndindex(*request.keys.shape[:3]):
        table = mine.passes[-1].tables[layer][b][h]
        assert table.positions == list(range(request.left[b], request.tokens))
        assert table.keys.tobytes() == request.keys[layer, b, h, request.left[b] :].tobytes()
        assert table.values.tobytes() == request.values[layer, b, h, request.left[b] :].tobytes()
    report = mine.session.report()
    assert (report.evicted, report.merged, report.exceeded) == (0, 0, 0)


def same_kept_rows(one: PassTrace, other: PassTrace, *, shift: int = 0, merged: float = 0.0) -> None:
    """Equal positions (``one`` minus ``shift``), keys, values and counts: to the bit, or ``merged`` where count > 1."""
    for mine, yours in zip(one.tables, other.tables, strict=True):
        for my_heads, your_heads in zip(mine, yours, strict=True):
            for a, b in zip(my_heads, your_heads, strict=True):
                assert [p - shift for p in a.positions] == b.positions
                count = a.columns["count"]
                assert count.tolist() == b.columns["count"].tolist()
                alone = count == 1 if merged else count > 0
                for left, right in ((a.keys, b.keys), (a.values, b.values)):
                    assert left[alone].tobytes() == right[alone].tobytes()
                    np.testing.assert_allclose(left, right, rtol=merged, atol=merged)
