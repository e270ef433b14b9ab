"""Chance without state: a number for every token, the same in every run, chunking and batch."""

from __future__ import annotations

from typing import Any

import array_api_compat

__all__ = ["uniform"]

_BITS31 = 2**31 - 1


def uniform(positions: Any, padding: Any, *, seed: int, layer: int) -> Any:
    """Numbers in [0, 1) that look independent and uniform, float64 [B, H, S].

    Integer arithmetic below 2^62, so that every backend draws the same.

    Args:
        positions: int64 [B, H, S], arrival indices.
        padding: int64 [B] (numpy), `Step.padding`: left out, so that a row of a padded batch draws what it draws alone.
        seed: another seed, other numbers.
        layer: another layer, other numbers.
    """
    xp = array_api_compat.array_namespace(positions)
    token = positions - xp.asarray(padding, dtype=xp.int64, device=positions.device)[:, None, None]
    x = (token * 69069 + (seed * 2654435761 + layer * 40503 + 12345) % 2**31) & _BITS31
    for _ in range(3):
        x = x ^ (x >> 15)
        x = (x * 739982445) & _BITS31
        x = x ^ (x >> 12)
    return xp.astype(x, xp.float64) / 2**31
