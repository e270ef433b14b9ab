"""Integer shares with an exact total."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .._plan import Scored
from .._types import Counts, HeadCounts

__all__ = ["Weights", "apportion", "per_layer"]

Weights: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]  # [B, n]


def apportion(weights: Weights, total: Counts, caps: HeadCounts) -> HeadCounts:
    """Split ``total`` [B] into integers [B, n] in proportion to ``weights``, none above its cap.

    A share above its cap is cut to it and the rest shared anew among the others; then the largest remainders round up
    (Hamilton's method), ties to the lower index. Where the weights of what is still open are all zero, it is shared
    evenly.

    Raises:
        ValueError: if the caps of a batch row do not hold its total.
    """
    if np.any(caps.sum(axis=1) < total):
        raise ValueError(f"caps {caps.sum(axis=1)} cannot hold a total of {total}.")
    open_ = np.ones(weights.shape, bool)
    while True:
        shared = np.where(open_, weights, 0.0)
        shared = np.where(shared.sum(axis=1, keepdims=True) > 0, shared, open_)
        left = total[:, None] - np.where(open_, 0, caps).sum(axis=1, keepdims=True)
        shares = left * shared / np.maximum(shared.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        over = open_ & (shares > caps)
        if not over.any():
            break
        open_ = open_ & ~over
    shares = np.where(open_, shares, caps)
    rows = np.minimum(np.floor(shares + 1e-9).astype(np.int64), caps)  # a share of 2.9999999999 is 3
    while (missing := total - rows.sum(axis=1)).any():
        remainder = np.where(rows < caps, np.round(shares - rows, 9), -np.inf)  # ties are ties, whatever the rounding
        order = np.argsort(-remainder, axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        rows = rows + ((rank < missing[:, None]) & (rows < caps))
    return rows


def per_layer(
    weights: Weights, budget: Counts, layers: Sequence[Scored], held: Sequence[HeadCounts]
) -> list[HeadCounts]:
    """Quotas [B, parts * H] of layers that share ``budget`` [B] rows a layer and head by ``weights`` [B, L].

    The heads of a layer get the same; no layer gets more rows than it holds. A batch row that holds no more than the
    whole budget keeps everything.
    """
    most = np.stack([rows.max(axis=1) for rows in held], axis=1)
    total = budget * len(layers)
    plenty = (most.sum(axis=1) <= total)[:, None]
    rows = apportion(np.where(plenty, 1.0, weights), total, np.where(plenty, total[:, None], most))
    rows = np.where(plenty, budget[:, None], rows)
    return [np.repeat(rows[:, n, None], heads.shape[1], axis=1) for n, heads in enumerate(held)]
