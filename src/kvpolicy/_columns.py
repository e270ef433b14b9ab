"""Names of columns that a scorer fills and an allocator reads."""

from __future__ import annotations

__all__ = ["strong_at"]


def strong_at(threshold: float) -> str:
    """How often a row got at least this share of the largest attention that a query pays."""
    return f"strong@{threshold:g}"
