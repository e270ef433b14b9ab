"""The array namespace of an array, found once for each type."""

from __future__ import annotations

from typing import Any

import array_api_compat

__all__ = ["namespace"]

_KNOWN: dict[type, Any] = {}  # a table of our own: torch.compile traces a dict, and warns of their lru_cache


def namespace(array: Any) -> Any:
    """The Array API namespace that array_api_compat has for this array's type."""
    known = _KNOWN.get(type(array))
    if known is None:
        known = _KNOWN[type(array)] = array_api_compat.array_namespace(array)
    return known
