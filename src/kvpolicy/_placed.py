"""Counts of the host beside the rows of a table."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import device

from ._types import Array, CacheView

__all__ = ["placed"]


def placed(view: CacheView, counts: Array) -> Array:
    """Counts as int64 on the device of a view, to be read only.

    Those of the host are sent once, not for every layer and token: an accelerator is waited for while they travel.
    """
    here = device(view.positions)
    if isinstance(counts, np.ndarray):
        return _sent(view.xp, here, counts.shape, counts.astype(np.int64, copy=False).tobytes())
    return view.xp.asarray(counts, dtype=view.xp.int64, device=here)


@lru_cache(maxsize=256)
def _sent(xp: Any, here: Any, shape: tuple[int, ...], content: bytes) -> Array:
    counts = np.frombuffer(content, np.int64).reshape(shape)
    return xp.asarray(counts.copy(), device=here)
