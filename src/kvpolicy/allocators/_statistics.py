"""What allocators measure of a layer's scores."""

from __future__ import annotations

from typing import Any

from .._plan import Scored
from .._types import Array

__all__ = ["moments", "usable"]


def usable(layer: Scored, among: Array | None = None) -> tuple[Array, Array]:
    """Scores in float64, zero where they do not count, and 1.0 where they do: valid rows with a finite score."""
    view, xp = layer.view, layer.view.xp
    counts = view.valid & xp.isfinite(layer.scores)
    if among is not None:
        counts = counts & among
    scores = xp.astype(layer.scores, xp.float64)
    return xp.where(counts, scores, xp.zeros_like(scores)), xp.astype(counts, xp.float64)


def moments(scores: Array, counts: Array, xp: Any) -> tuple[Array, Array, Array]:
    """Mean, variance and third central moment along the rows, over those that count; zero where none does."""
    size = xp.sum(counts, axis=-1, keepdims=True)
    size = xp.where(size > 0, size, xp.ones_like(size))
    mean = xp.sum(scores * counts, axis=-1, keepdims=True) / size
    off = (scores - mean) * counts
    second, third = (xp.sum(off**power, axis=-1, keepdims=True) / size for power in (2, 3))
    return mean[..., 0], second[..., 0], third[..., 0]
