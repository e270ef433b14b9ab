"""A rotary embedding for stages that turn vectors: the half-rotation layout with base 10,000, in float64."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from .._protocols import Backend
from .._types import Rotate

__all__ = ["rotary"]


def rotary(ops: Backend) -> Rotate:
    """Turns vectors [..., D], D even, by int64 positions [...], on this backend's arrays; the dtype stays."""

    def turn(vectors: Any, by: Any) -> Any:
        data = np.asarray(ops.host(vectors), np.float64)
        half = data.shape[-1] // 2
        angle = ops.host(by)[..., None] * 10000.0 ** (-np.arange(half) / half)
        one, other = data[..., :half], data[..., half:]
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
        xp = array_api_compat.array_namespace(vectors)
        return xp.astype(ops.from_host(turned, device=vectors.device), vectors.dtype)

    return turn
