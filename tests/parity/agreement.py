"""What each parity test asks of a policy, whatever the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from driving import PassTrace, Request, Trace, drive, only, same_tables
from reference import Outcome

from kvpolicy import Policy, full

__all__ = ["agree", "batch_rows_are_independent", "chunks_make_no_difference", "everything_fits"]

Simulate = Callable[..., list[Outcome]]


def agree(
    trace: Trace,
    request: Request,
    simulate: Simulate,
    settings: dict[str, Any],
    columns: Sequence[str] = ("count",),
) -> None:
    """A trace of an unpadded batch against the formulas, pass by pass: positions and counts exact, K/V 1e-12."""
    for layer, b in np.ndindex(*request.keys.shape[:2]):
        expected = simulate(
            request.queries[layer, b],
            request.keys[layer, b],
            request.values[layer, b],
            request.prompt,
            request.scale,
            **settings,
        )
        for done, due in zip(trace.passes, expected, strict=True):
            np.testing.assert_allclose(done.outputs[layer, b], due.outputs, rtol=1e-10, atol=1e-10)
            for table, rows in zip(done.tables[layer][b], due.heads, strict=True):
                assert table.positions == [row.position for row in rows]
                np.testing.assert_allclose(table.keys, [row.key for row in rows], rtol=1e-12, atol=1e-12)
                np.testing.assert_allclose(table.values, [row.value for row in rows], rtol=1e-12, atol=1e-12)
                assert table.columns["count"].tolist() == [row.count for row in rows]
                for name in set(columns) - {"count"}:
                    due_column = [getattr(row, name) for row in rows]
                    np.testing.assert_allclose(table.columns[name], due_column, rtol=1e-10, atol=1e-10)


def batch_rows_are_independent(policy: Policy, request: Request) -> None:
    """Every row of a left-padded batch gives, to the bit, the table that it gives alone, and reads the same."""
    together = drive(policy, request)
    for b, left in enumerate(request.left):
        alone = drive(policy, request.alone(b))
        for whole, due in zip(together.passes, alone.passes, strict=True):
            mine = only(whole, b, due.outputs.shape[3])
            same_kept_rows(mine, due, shift=left)
            np.testing.assert_allclose(mine.outputs, due.outputs, rtol=1e-12, atol=1e-12)


def chunks_make_no_difference(policy: Policy, request: Request, chunks: Sequence[int]) -> None:
    """A prompt in chunks ends in the table of the prompt as a whole, is compacted once, and reads the same."""
    whole, parts = drive(policy, request), drive(policy, request, chunks=chunks)
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
    mine, plain = drive(policy, request), drive(full(), request)
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


def same_kept_rows(one: PassTrace, other: PassTrace, *, shift: int = 0) -> None:
    """Equal positions (``one`` minus ``shift``), keys, values and counts, to the bit."""
    for mine, yours in zip(one.tables, other.tables, strict=True):
        for my_heads, your_heads in zip(mine, yours, strict=True):
            for a, b in zip(my_heads, your_heads, strict=True):
                assert [p - shift for p in a.positions] == b.positions
                assert a.keys.tobytes() == b.keys.tobytes()
                assert a.values.tobytes() == b.values.tobytes()
                assert a.columns["count"].tolist() == b.columns["count"].tolist()
