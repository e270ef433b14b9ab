"""Positions that are re-indexed: vectors turned to the slots that their rows have in the table, in order of arrival."""

from __future__ import annotations

from dataclasses import replace

from ._namespace import namespace
from ._pass import Pass
from ._protocols import Backend
from ._types import Array, CacheView, HeadCounts, Rotate

__all__ = ["in_slots", "queries_in_slots"]


def in_slots(view: CacheView, turn: Rotate | None, ops: Backend) -> CacheView:
    """The table to attend over and to score: its keys turned to their slots where positions are re-indexed."""
    if turn is None:
        return view
    xp, by = view.xp, ops.arrival_rank(view) - view.positions
    return replace(view, keys=turn(view.keys, xp.where(view.valid, by, xp.zeros_like(by))))


def queries_in_slots(queries: Array, turn: Rotate, held: HeadCounts, now: Pass) -> Array:
    """The queries [B, Hq, Q, D] of a pass, whose own rows are the last of the ``held`` [B, H] of each head."""
    xp = namespace(now.positions)
    valid = xp.astype(now.valid, xp.int64)
    behind = xp.sum(valid, axis=-1, keepdims=True) - xp.cumulative_sum(valid, axis=-1)  # later tokens of this pass
    rows = xp.asarray(held, dtype=xp.int64, device=now.positions.device)
    slot = rows[:, :, None] - 1 - behind[:, None, :]
    by = xp.where(now.valid[:, None, :], slot - now.positions[:, None, :], xp.zeros_like(slot))
    return turn(queries, xp.repeat(by, queries.shape[1] // by.shape[1], axis=1))
