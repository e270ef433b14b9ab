"""The rotary embedding (RoFormer, arXiv 2104.09864), in the half-rotation layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["rotate"]

Arr = np.ndarray[Any, np.dtype[Any]]


def rotate(x: Arr, by: int) -> Arr:
    """A vector of even length D turned by so many positions: pair (i, i + D/2) by the angle ``by * 10000^(-2i/D)``."""
    half = len(x) // 2
    assert len(x) == 2 * half
    out = np.zeros(len(x))
    for i in range(half):
        angle = by * 10000.0 ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out
