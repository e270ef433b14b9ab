"""The kernels of `TritonBackend.most_similar`: lengths of keys, then the best anchor of each row, tile by tile.

Rows and anchors come as lists in order of arrival (`lists.rank`), so that tiles hold nothing else and the first
of equals is the earliest. A program owns rows and passes over the anchors; in each column of a tile it remembers the
best cosine so far and which tile that was in, and only at the end compares the columns. No product leaves the chip.

A row's own length changes none of its comparisons and is divided out last.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .rows import rows_of

__all__ = ["SEARCH", "SEARCHES", "Search", "lengths", "nearest"]

_NONE = tl.constexpr(2**31 - 1)


class Search(NamedTuple):
    """Tiles of `nearest`: rows that a program owns and anchors at a time, powers of two, at least 16."""

    rows: int
    anchors: int
    warps: int
    stages: int


# For 16-bit numbers and heads of at most 128.
SEARCHES: dict[str, Search] = {
    "128x32, 8 warps": Search(128, 32, 8, 3),
    "128x32, 4 warps": Search(128, 32, 4, 3),
    "128x64, 8 warps": Search(128, 64, 8, 3),
    "64x128, 8 warps": Search(64, 128, 8, 2),
    "64x64, 4 warps": Search(64, 64, 4, 3),
}
SEARCH = "64x64, 4 warps"


@triton.jit
def lengths(
    keys,  # [B, HEADS, rows, DIM]
    out,  # float32 [B, HEADS, rows]: one over the length of a key; 0 for a key of length zero
    k_batch,
    k_head,
    k_row,
    k_column,
    rows,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS)."""
    table = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = rows_of(
        keys + table // HEADS * k_batch + table % HEADS * k_head, at, at < rows, k_row, k_column, DIM, BLOCK_D
    ).to(tl.float32)
    # Divided by its largest part first: the square of a large or a small number is no float32.
    most = tl.max(tl.abs(key), 1)
    key /= tl.where(most > 0, most, 1.0)[:, None]
    length = most * tl.sqrt(tl.sum(key * key, 1))
    inverse = tl.where(length > 0, 1.0 / tl.where(length > 0, length, 1.0), 0.0)
    tl.store(out + table * rows + at, inverse, mask=at < rows)


@triton.jit
def nearest(
    keys,  # [B, HEADS, rows, DIM]
    inverse,  # float32 [B, HEADS, rows], from `lengths`
    asking,  # int32 [B, HEADS, rows]: the rows that ask, then -1
    anchors,  # int32 [B, HEADS, rows]: the anchors in order of arrival, then -1
    asked,  # int32 [B, HEADS], how many ask
    offered,  # int32 [B, HEADS], how many anchors there are
    into,  # int64 [B, HEADS, rows]; written for rows that ask, where there is an anchor
    similarity,  # float32 [B, HEADS, rows], likewise
    k_batch,
    k_head,
    k_row,
    k_column,
    rows,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS)."""
    table = tl.program_id(1).to(tl.int64)
    keys += table // HEADS * k_batch + table % HEADS * k_head
    inverse += table * rows
    anchors += table * rows
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    count = tl.load(offered + table)
    if (tl.program_id(0) * BLOCK_R < tl.load(asked + table)) & (count > 0):
        row = tl.load(asking + table * rows + place, mask=place < rows, other=-1)
        asks = row >= 0
        key = rows_of(keys, row, asks, k_row, k_column, DIM, BLOCK_D)
        column = tl.arange(0, BLOCK_A)
        best = tl.full([BLOCK_R, BLOCK_A], float("-inf"), tl.float32)
        when = tl.zeros([BLOCK_R, BLOCK_A], tl.int32)
        for first in range(0, count, BLOCK_A):
            there = first + column < count
            anchor = tl.load(anchors + first + column, mask=there, other=0)
            other = rows_of(keys, anchor, there, k_row, k_column, DIM, BLOCK_D)
            scale = tl.load(inverse + anchor, mask=there, other=0.0)
            product = tl.dot(key, tl.trans(other), input_precision="tf32x3") * scale[None, :]
            product = tl.where(there[None, :], product, float("-inf"))
            better = product > best
            best = tl.where(better, product, best)
            when = tl.where(better, first, when)
        most = tl.max(best, 1)
        chosen = tl.min(tl.where(best == most[:, None], when + column[None, :], _NONE), 1)
        # A row that holds NaN is like nothing: it gets the first anchor, not a place outside of the table.
        chosen = tl.load(anchors + tl.where(chosen < count, chosen, 0), mask=asks, other=0)
        cosine = most * tl.load(inverse + row, mask=asks, other=0.0)
        tl.store(into + table * rows + row, chosen.to(tl.int64), mask=asks)
        tl.store(similarity + table * rows + row, cosine, mask=asks)
