"""The rows between the protected ends of a table."""

from __future__ import annotations

from ._placed import placed
from ._types import Array, CacheView, KeepMask

__all__ = ["between"]


def between(view: CacheView, rank: Array, first: int, last: Array) -> KeepMask:
    """The valid rows that are neither the ``first`` nor the ``last`` to arrive, bool [B, H, S].

    Args:
        view: the table.
        rank: its arrival ranks, as `Backend.arrival_rank` gives them.
        first: how many at the start are left out.
        last: how many at the end: a number, or integers [B, H].
    """
    xp = view.xp
    begun = (rank >= first) & view.valid if first else view.valid
    if isinstance(last, int) and last == 0:
        return begun
    end = last if isinstance(last, int) else placed(view, last)[..., None]
    return begun & (rank < xp.sum(view.valid, axis=-1, keepdims=True, dtype=xp.int64) - end)
