"""The array namespace of an array, found once for each type."""

from __future__ import annotations

from typing import Any

import array_api_compat

__all__ = ["along", "namespace"]

_KNOWN: dict[type, Any] = {}  # a table of our own: torch.compile traces a dict, and warns of their lru_cache


def namespace(array: Any) -> Any:
    """The Array API namespace that array_api_compat has for this array's type."""
    known = _KNOWN.get(type(array))
    if known is None:
        known = _KNOWN[type(array)] = array_api_compat.array_namespace(array)
    return known


def along(data: Any, index: Any, axis: int) -> Any:
    """``take_along_axis`` for indices that are none of them negative; other axes of size 1 serve all of the other's.

    For torch, `take_along_axis` of the Array API is five kernels, four of them for negative indices.
    """
    if not hasattr(data, "gather"):
        return namespace(data).take_along_axis(data, index, axis=axis)
    axis %= data.ndim
    shape = [max(pair) for pair in zip(data.shape, index.shape, strict=True)]
    wide, narrow = list(shape), list(shape)
    wide[axis], narrow[axis] = data.shape[axis], index.shape[axis]
    return data.expand(wide).gather(axis, index.expand(narrow))
