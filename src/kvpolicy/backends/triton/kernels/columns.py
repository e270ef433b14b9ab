"""What survivors carry beside keys and values: each column goes with its row, or is summed over what folds into it."""

from __future__ import annotations

import triton
import triton.language as tl

from .lists import NONE, chunks_of

__all__ = ["fold_columns"]


@triton.jit
def _fold_column(
    data,
    order,
    into,
    least,
    most,
    lowest,
    highest,
    out,
    rows,
    room,
    chunks,
    TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    MANY: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One of the columns of `fold_columns`, whose ``into`` is None unless the column is summed."""
    table = tl.program_id(1).to(tl.int64)
    data += table * rows
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(order + table * room + slot, mask=slot < room, other=-1)
    there = row >= 0
    sum = tl.load(data + row, mask=there, other=0)
    if into is not None:
        into += table * rows * TARGETS
        note = table * chunks
        first, last = tl.min(tl.where(there, row, NONE), 0), tl.max(row, 0)
        begin, end = chunks_of(least + note, most + note, first, last, chunks, WIDE)
        low, high = chunks_of(lowest + note, highest + note, first, last, chunks, WIDE)
        for chunk in range(tl.minimum(begin, low), tl.maximum(end, high) + 1, MANY):
            at = chunk * CHUNK + tl.arange(0, MANY * CHUNK)
            targets = tl.zeros([MANY * CHUNK], tl.int32)
            for target in range(TARGETS):
                goes = tl.load(into + at.to(tl.int64) * TARGETS + target, mask=at < rows, other=-1)
                targets += (goes >= 0).to(tl.int32)
            gives = tl.load(data + at, mask=targets > 0, other=0)
            if TARGETS > 1:
                gives *= (1.0 / tl.maximum(targets, 1).to(tl.float64)).to(sum.dtype)
            for target in range(TARGETS):
                goes = tl.load(into + at.to(tl.int64) * TARGETS + target, mask=at < rows, other=-1).to(tl.int32)
                meets = (goes[:, None] == row[None, :]) & there[None, :]
                sum += tl.sum(tl.where(meets, gives[:, None], tl.zeros_like(gives)[:, None]), 0).to(sum.dtype)
    tl.store(out + table * room + slot, sum, mask=slot < room)


@triton.jit
def fold_columns(
    data,  # each [B, HEADS, rows], contiguous, of any dtype
    order,  # int32 [B, HEADS, room], from `rank`
    into,  # int64 [B, HEADS, rows, TARGETS], contiguous; None: the survivors keep what they have
    least,  # int32 [B, HEADS, chunks], from `survey`, as are the next three
    most,
    lowest,
    highest,
    out,  # each [B, HEADS, room]; 0 where there is no row
    rows,
    room,
    chunks,
    SUMMED: tl.constexpr,  # for each, whether survivors get the sum, or keep what they have
    TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    MANY: tl.constexpr,  # chunks that are looked into at once
    WIDE: tl.constexpr,
):
    """Programs (blocks of survivors, B * HEADS, columns). A row with several targets gives each an even share."""
    for number in tl.static_range(len(data)):
        if tl.program_id(2) == number:
            _fold_column(
                data[number],
                order,
                into if SUMMED[number] else None,
                least,
                most,
                lowest,
                highest,
                out[number],
                rows,
                room,
                chunks,
                TARGETS,
                BLOCK,
                CHUNK,
                MANY,
                WIDE,
            )
