"""Rows of a matrix wherever they lie: what several kernels read."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["rows_of"]


@triton.jit
def rows_of(vectors, row, there, stride, column, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[N, BLOCK_D]: these rows of a matrix, zeros where there is none."""
    d = tl.arange(0, BLOCK_D)
    inside = there[:, None]
    if DIM < BLOCK_D:
        inside = inside & (d < DIM)[None, :]
    return tl.load(vectors + row.to(tl.int64)[:, None] * stride + d[None, :] * column, mask=inside, other=0.0)
