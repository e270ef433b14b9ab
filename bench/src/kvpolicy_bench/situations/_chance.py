"""Draws that several situations need, a whole batch at a time."""

from __future__ import annotations

import numpy as np

__all__ = ["distinct", "shuffled"]


def distinct(count: int, choices: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """In each of ``count`` rows, ``size`` different numbers below ``choices``: int64 [count, size]."""
    return np.argsort(rng.random((count, choices)), axis=1)[:, :size]


def shuffled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each row in an order of its own."""
    return np.take_along_axis(values, np.argsort(rng.random(values.shape), axis=1), axis=1)
