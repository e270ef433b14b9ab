"""The kernels that set rows in relation: their order by arrival and by score, the nearest, the sums over what folds.

Nothing is sorted or scattered. Where a row stands among S others is how many of them come before it, so every row is
compared with all: S^2 comparisons in one launch, for which sorting needs half a dozen. Programs own blocks of rows and
pass over the table in chunks, so that every answer is formed by one program, in one order: the same bits every time.
Arrivals are below 2**30, as in any model that there is.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["BLOCK", "CHUNK", "MOST_COMPARISONS", "best", "nearest_arrival", "ranks", "sums"]

BLOCK, CHUNK = 32, 128
MOST_COMPARISONS = 1 << 28  # of one call; beyond, a sort takes less time

_LAST = tl.constexpr((1 << 31) - 1)


@triton.jit
def ranks(
    positions,  # int64 [B, HEADS, rows]
    valid,  # bool [B, HEADS, rows]
    out,  # int64 [B, HEADS, rows], contiguous: how many valid rows came before; ``rows`` for an invalid one
    p_batch,
    p_head,
    p_row,
    v_batch,
    v_head,
    v_row,
    rows,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS)."""
    table = tl.program_id(1).to(tl.int64)
    positions += table // HEADS * p_batch + table % HEADS * p_head
    valid += table // HEADS * v_batch + table % HEADS * v_head
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = tl.load(positions + at * p_row, mask=at < rows, other=0).to(tl.int32)
    before = tl.zeros([BLOCK, CHUNK], tl.int32)
    for first in range(0, rows, CHUNK):
        other = first + tl.arange(0, CHUNK)
        there = tl.load(valid + other * v_row, mask=other < rows, other=0) != 0
        position = tl.load(positions + other * p_row, mask=other < rows, other=0).to(tl.int32)
        position = tl.where(there, position, _LAST)
        before += (position[None, :] < mine[:, None]).to(tl.int32)
    counts = tl.load(valid + at * v_row, mask=at < rows, other=0) != 0
    place = tl.where(counts, tl.sum(before, 1), rows)
    tl.store(out + table * rows + at, place.to(tl.int64), mask=at < rows)


@triton.jit
def best(
    scores,  # float32 [B, HEADS, rows]
    positions,  # int64 [B, HEADS, rows]
    valid,  # bool [B, HEADS, rows]
    rank,  # int64 [B, HEADS, rows], or None where no ends are protected
    quota,  # int64 [B, HEADS], contiguous
    protected,  # int64 [B, HEADS], contiguous: rows at the end; or None: ``last`` everywhere
    out,  # bool [B, HEADS, rows], contiguous
    s_batch,
    s_head,
    s_row,
    p_batch,
    p_head,
    p_row,
    v_batch,
    v_head,
    v_row,
    r_batch,
    r_head,
    r_row,
    rows,
    first,
    last,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS). See `Backend.top_k`."""
    table = tl.program_id(1).to(tl.int64)
    scores += table // HEADS * s_batch + table % HEADS * s_head
    positions += table // HEADS * p_batch + table % HEADS * p_head
    valid += table // HEADS * v_batch + table % HEADS * v_head
    most = tl.load(quota + table)
    if protected is not None:
        last = tl.load(protected + table)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = tl.load(valid + at * v_row, mask=at < rows, other=0) != 0
    score = _number(tl.load(scores + at * s_row, mask=at < rows, other=0.0))
    position = tl.load(positions + at * p_row, mask=at < rows, other=0).to(tl.int32)
    held = 0
    inner = here
    if rank is not None:
        rank += table // HEADS * r_batch + table % HEADS * r_head
        counted = tl.zeros([CHUNK], tl.int32)
        for start in range(0, rows, CHUNK):
            other = start + tl.arange(0, CHUNK)
            counted += tl.load(valid + other * v_row, mask=other < rows, other=0).to(tl.int32)
        held = tl.sum(counted, 0)
        arrival = tl.load(rank + at * r_row, mask=at < rows, other=0)
        inner = here & (arrival >= first) & (arrival < held - last)
        most -= tl.minimum(held, first + last)  # protected rows count inside the quota
    ahead = tl.zeros([BLOCK, CHUNK], tl.int32)
    for start in range(0, rows, CHUNK):
        other = start + tl.arange(0, CHUNK)
        competes = tl.load(valid + other * v_row, mask=other < rows, other=0) != 0
        if rank is not None:
            its = tl.load(rank + other * r_row, mask=other < rows, other=0)
            competes = competes & (its >= first) & (its < held - last)
        # A row that does not compete is worse than the worst: it arrived before all others.
        value = _number(tl.load(scores + other * s_row, mask=other < rows, other=0.0))
        value = tl.where(competes, value, float("-inf"))
        came = tl.load(positions + other * p_row, mask=other < rows, other=0).to(tl.int32)
        came = tl.where(competes, came, -1)
        later = (value[None, :] == score[:, None]) & (came[None, :] > position[:, None])
        ahead += ((value[None, :] > score[:, None]) | later).to(tl.int32)
    keep = here & ((tl.sum(ahead, 1) < most) | (inner == 0))
    tl.store(out + table * rows + at, keep, mask=at < rows)


@triton.jit
def _number(score):
    """NaN as the best there is: nobody may lose count of rows by it, whether or not somebody looks at the scores."""
    return tl.where(score == score, score, float("inf"))  # noqa: PLR0124  (triton has no isnan that it interprets)


@triton.jit
def nearest_arrival(
    positions,  # int64 [B, HEADS, rows]
    valid,  # bool [B, HEADS, rows]
    keep,  # bool [B, HEADS, rows]
    out,  # int64 [B, HEADS, rows], contiguous: the nearest row to keep, the earlier of two; -1 if there is none
    p_batch,
    p_head,
    p_row,
    v_batch,
    v_head,
    v_row,
    k_batch,
    k_head,
    k_row,
    rows,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS)."""
    table = tl.program_id(1).to(tl.int64)
    positions += table // HEADS * p_batch + table % HEADS * p_head
    valid += table // HEADS * v_batch + table % HEADS * v_head
    keep += table // HEADS * k_batch + table % HEADS * k_head
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = tl.load(positions + at * p_row, mask=at < rows, other=0).to(tl.int32)
    here = tl.load(valid + at * v_row, mask=at < rows, other=0) != 0
    least = tl.full([BLOCK, CHUNK], _LAST, tl.int32)
    chosen = tl.full([BLOCK, CHUNK], -1, tl.int32)
    for first in range(0, rows, CHUNK):
        other = first + tl.arange(0, CHUNK)
        kept = tl.load(valid + other * v_row, mask=other < rows, other=0) != 0
        kept = kept & (tl.load(keep + other * k_row, mask=other < rows, other=0) != 0)
        came = tl.load(positions + other * p_row, mask=other < rows, other=0).to(tl.int32)
        # At each distance there are two rows at most: twice the distance, and one more for the later.
        far = 2 * tl.abs(mine[:, None] - came[None, :]) + (came[None, :] > mine[:, None]).to(tl.int32)
        far = tl.where(kept[None, :], far, _LAST)
        chosen = tl.where(far < least, other[None, :], chosen)
        least = tl.minimum(least, far)
    nearest = tl.min(least, 1)
    place = tl.max(tl.where(least == nearest[:, None], chosen, -1), 1)
    tl.store(out + table * rows + at, tl.where(here, place, -1).to(tl.int64), mask=at < rows)


@triton.jit
def sums(
    data,  # [B, HEADS, items], contiguous
    index,  # int64 [B, HEADS, items], contiguous: the row that an item adds to; -1: none
    out,  # [B, HEADS, rows], contiguous
    items,
    rows,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS)."""
    table = tl.program_id(1).to(tl.int64)
    data += table * items
    index += table * items
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, CHUNK], tl.float32)
    for first in range(0, items, CHUNK):
        item = first + tl.arange(0, CHUNK)
        into = tl.load(index + item, mask=item < items, other=-1)
        value = tl.load(data + item, mask=item < items, other=0.0).to(tl.float32)
        total += tl.where(into[None, :] == at[:, None], value[None, :], 0.0)
    tl.store(out + table * rows + at, tl.sum(total, 1), mask=at < rows)
