"""What several weighers do: add up what folds into a row, look at the row it folds into, make weights sum to one."""

from __future__ import annotations

from typing import Any

import array_api_compat

from ..._namespace import along
from ..._plan import Assignment, Weights
from ..._step import Step
from ..._types import Array, CacheView

__all__ = ["at_target", "folded", "normalised", "shared_count", "summed", "wide"]


def wide(view: CacheView) -> Any:
    """The dtype for weights: float64 for float64 keys, float32 for all others."""
    xp = view.xp
    return xp.float64 if view.keys.dtype == xp.float64 else xp.float32


def at_target(data: Array, into: Array) -> Array:
    """``data`` [B, H, S] of the row that each row folds into, [B, H, S, M]; that of row 0 where it does not."""
    xp = array_api_compat.array_namespace(into)
    flat = xp.reshape(xp.where(into >= 0, into, 0), (*into.shape[:2], -1))
    return xp.reshape(along(data, flat, axis=-1), into.shape)


def summed(data: Array, into: Array, step: Step) -> Array:
    """``data`` [B, H, S, M] added up over what folds into each row, [B, H, S], in its own dtype."""
    xp = array_api_compat.array_namespace(into)
    return xp.astype(step.ops.segment_sum(data, into), data.dtype)


def folded(view: CacheView, into: Array, step: Step) -> Array:
    """How many rows fold into each row, [B, H, S]."""
    return summed(view.xp.astype(into >= 0, wide(view)), into, step)


def shared_count(view: CacheView, into: Array, needed_by: str) -> tuple[Array, Array]:
    """The tokens each row stands for, [B, H, S], and its even share of them for each of its targets, [B, H, S, M]."""
    xp, goes = view.xp, into >= 0
    count = xp.astype(view.column("count", needed_by=needed_by), wide(view))
    share = count[..., None]
    if into.shape[-1] > 1:
        targets = xp.sum(xp.astype(goes, count.dtype), axis=-1, keepdims=True)
        share = share / xp.where(targets > 0, targets, 1.0)
    return count, xp.where(goes, share, 0.0)


def normalised(shares: Array, own: Array, assignment: Assignment, step: Step) -> Weights:
    """``shares`` [B, H, S, M] and ``own`` [B, H, S], made to sum to one in each kept row: convex weights.

    Shares of rows that fold nowhere must be zero; a row whose sum is not positive keeps a weight of one.
    """
    xp = array_api_compat.array_namespace(own)
    total = own + summed(shares, assignment.into, step)
    sound = total > 0
    safe = xp.where(sound, total, 1.0)
    own = xp.where(sound, own / safe, 1.0)
    return Weights(shares / at_target(safe, assignment.into), own)
