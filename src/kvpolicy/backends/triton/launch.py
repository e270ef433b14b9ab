"""What several launches need: which tensors kernels take, and how many programs cover them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._types import CacheView
from .kernels.mass import INTERPRETED

__all__ = ["DTYPES", "over", "programs", "reachable", "serves", "tile_of", "warps_for", "widened"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_INTERPRETED_PROGRAMS = 64  # what the interpreter is to take for a device's fill, so that it splits rows too


def reachable(data: Tensor) -> bool:
    """Whether kernels of our own can read it; not where torch compiles, which fuses what it sees."""
    return (INTERPRETED or data.is_cuda) and not torch.compiler.is_compiling()


def serves(view: CacheView, *data: Tensor) -> bool:
    """Whether the kernels take these keys or values, which a store may hold on the host."""
    device = view.positions.device
    known = all(vectors.dtype in DTYPES and vectors.device == device for vectors in data)
    return known and 0 not in view.shape and (INTERPRETED or device.type == "cuda")


def widened(data: Tensor, dtype: torch.dtype) -> Tensor:
    """For a matrix product: the interpreter computes in numpy, which has no bfloat16."""
    return data.to(torch.float32 if INTERPRETED else dtype)


def programs(device: torch.device) -> int:
    """Two for each multiprocessor."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def warps_for(warps: int, *tile: int) -> int:
    """Fewer where a tile was cut to a small table."""
    return warps if tile[0] * tile[1] > 64 * 64 else min(warps, 4)


def over(count: int, block: int) -> int:
    """How many blocks hold so many."""
    return -(-count // block)


def tile_of(length: int) -> int:
    """The next power of two, at least the 16 that a matrix product of tiles needs."""
    return max(16, 1 << (length - 1).bit_length())
