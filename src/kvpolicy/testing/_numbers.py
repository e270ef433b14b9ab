"""Dtypes without a framework: what a number becomes in each, and how far it moves."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["DTYPES", "ROUNDING", "Arr", "rounded"]

Arr: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Dtypes of keys and values, and the largest relative error of one rounding in each.
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
DTYPES = tuple(ROUNDING)


def rounded(data: Arr, dtype: str) -> Arr:
    """The data in float64, every number one that the dtype can hold (to nearest, ties to even)."""
    if dtype != "bfloat16":
        return np.asarray(data, np.float64).astype(dtype).astype(np.float64)
    bits = np.asarray(data, np.float32).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
