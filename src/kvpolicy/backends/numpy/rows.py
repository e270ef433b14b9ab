"""The rows of one head that hold something, and the order in which they came."""

from __future__ import annotations

from ..._types import CacheView

__all__ = ["by_arrival", "valid_rows"]


def valid_rows(view: CacheView, b: int, h: int) -> list[int]:
    """Neither padding nor empty slots."""
    return [n for n in range(view.shape[2]) if view.valid[b, h, n]]


def by_arrival(view: CacheView, b: int, h: int, rows: list[int]) -> list[int]:
    """These rows in order of arrival; where arrivals are equal, in order of slots."""
    return [n for _, n in sorted((int(view.positions[b, h, n]), n) for n in rows)]
