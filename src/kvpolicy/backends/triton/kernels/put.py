"""The kernel that brings a new row into its table: key, value and scalars, in the first free slot of each head."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["put"]


@triton.jit
def put(
    positions,  # int64 [B, HEADS, width], contiguous; -1 in a free slot
    valid,  # bool [B, HEADS, width], contiguous
    columns,  # a tuple of [B, HEADS, width], contiguous
    keys,  # [B, HEADS, slots, DIM], or [slots of all heads, DIM] where ``base`` says where each begins
    values,
    base,  # int64 [B, HEADS] or None
    new_position,  # int64 [B]
    new_valid,  # bool [B]
    new_columns,  # a tuple of [B], contiguous
    new_keys,  # [B, HEADS, DIM]
    new_values,
    n_batch,
    n_valid,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    nk_batch,
    nk_head,
    nk_column,
    nv_batch,
    nv_head,
    nv_column,
    used,
    width,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    GIVEN: tl.constexpr,  # a tuple: whether the new row brings a column, which else is zero
    CHUNK: tl.constexpr,
):
    """Programs (B * HEADS). The caller has seen to a free slot among the first ``used``."""
    table = tl.program_id(0).to(tl.int64)
    batch, head = table // HEADS, table % HEADS
    free = tl.full([CHUNK], 2**31 - 1, tl.int32)
    for first in range(0, used, CHUNK):
        slot = first + tl.arange(0, CHUNK)
        taken = tl.load(positions + table * width + slot, mask=slot < used, other=0) >= 0
        free = tl.minimum(free, tl.where(taken, 2**31 - 1, slot))
    slot = tl.min(free, 0).to(tl.int64)
    tl.store(positions + table * width + slot, tl.load(new_position + batch * n_batch))
    tl.store(valid + table * width + slot, tl.load(new_valid + batch * n_valid))
    for n in tl.static_range(len(GIVEN)):
        kind = columns[n].dtype.element_ty
        if GIVEN[n]:
            tl.store(columns[n] + table * width + slot, tl.load(new_columns[n] + batch).to(kind))
        else:
            tl.store(columns[n] + table * width + slot, tl.zeros([], kind))
    if base is None:
        keys += batch * k_batch + head * k_head
        values += batch * v_batch + head * v_head
    else:
        slot += tl.load(base + table)
    d = tl.arange(0, BLOCK_D)
    key = tl.load(new_keys + batch * nk_batch + head * nk_head + d * nk_column, mask=d < DIM, other=0.0)
    tl.store(keys + slot * k_row + d, key.to(keys.dtype.element_ty), mask=d < DIM)
    d = tl.arange(0, BLOCK_V)
    value = tl.load(new_values + batch * nv_batch + head * nv_head + d * nv_column, mask=d < VALUE_DIM, other=0.0)
    tl.store(values + slot * v_row + d, value.to(values.dtype.element_ty), mask=d < VALUE_DIM)
