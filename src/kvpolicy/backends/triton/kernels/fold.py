"""Survivors in order of arrival, and onto each what folds into it: the keys and values of `TritonBackend.compact`.

Nothing is added atomically. A program of `fold` owns a few survivors: in the chunks that may hold any, it finds the
first row that folds into each, and from there `survey` has noted the next one; it reads those rows and adds them up in
registers. Crowds come after them, as sums. So a source row is read once for each of its targets, a survivor is read and
written once, and every sum is formed in one order.

What it costs: where rows fold into neighbours, each program looks into a few chunks, and ``into`` is read about once;
where they fold anywhere, each program reads all S entries of it.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .lists import NONE, chunks_of
from .rows import rows_of

__all__ = ["FOLDING", "FOLDINGS", "Folding", "fold"]


class Folding(NamedTuple):
    """How `survey`, `rank` and `fold` divide the work.

    ``survivors`` and ``chunk``, the rows of a chunk, are powers of two. Of what one program of `fold` owns, so many
    survivors are served side by side, and up to ``groups`` such groups one after another, as long as there are programs
    enough to fill a device. A thread has at most so many ``registers``, where a row takes few of them: more programs
    then wait for memory side by side. `fold` reads fewer rows than a ``crowd`` one by one, in each chunk; smaller
    crowds send more sums through memory. ``lists`` are the warps of a program of `survey` and `rank`.
    """

    survivors: int
    chunk: int
    warps: int
    crowd: int = 16
    lists: int = 1
    groups: int = 4
    registers: int | None = 64


FOLDINGS: dict[str, Folding] = {
    "2 of 64, 1 warp": Folding(2, 64, 1),
    "2 of 64, 1 warp, all registers": Folding(2, 64, 1, registers=None),
    "2 of 64, 1 warp, 16 groups": Folding(2, 64, 1, groups=16),
    "4 of 64, 1 warp": Folding(4, 64, 1),
    "4 of 64, 1 warp, 96 registers": Folding(4, 64, 1, registers=96),
    "4 of 128, 1 warp": Folding(4, 128, 1),
    "8 of 128, 4 warps": Folding(8, 128, 4, registers=None),
}
FOLDING = "2 of 64, 1 warp"


@triton.jit
def fold(
    keys,  # [B, HEADS, rows, DIM]
    values,  # [B, HEADS, rows, VALUE_DIM]
    order,  # int32 [B, HEADS, room], from `rank`: the rows that stay, -1 for none
    into,  # int64 [B, HEADS, rows, TARGETS], contiguous as all that follow; None: nothing folds
    weight,  # floating, like ``into``
    following,  # int32, from `survey`
    own,  # floating [B, HEADS, rows]
    key_scale,  # likewise, or None
    value_scale,  # likewise, or None
    least,  # int32 [B, HEADS, chunks], from `survey`, as are the next six
    most,
    lowest,
    highest,
    takers,
    key_sums,
    value_sums,
    out_keys,  # [B, HEADS, room, DIM]
    out_values,  # [B, HEADS, room, VALUE_DIM]
    k_batch,
    k_head,
    k_row,
    k_column,
    v_batch,
    v_head,
    v_row,
    v_column,
    rows,
    room,
    chunks,
    MERGE_KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    TARGETS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,  # chunks whose sums are added at once
    CROWD: tl.constexpr,
    CROWDS: tl.constexpr,
    WIDE: tl.constexpr,
    GROUPS: tl.constexpr,  # of BLOCK survivors, one after another
):
    """Programs (blocks of survivors, B * HEADS). What is found for the keys serves the values, too."""
    table = tl.program_id(1).to(tl.int64)
    keys += table // HEADS * k_batch + table % HEADS * k_head
    values += table // HEADS * v_batch + table % HEADS * v_head
    order += table * room
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    begin, end, low, high = 0, -1, 0, -1
    if into is not None:
        into += table * rows * TARGETS
        weight += table * rows * TARGETS
        following += table * rows * TARGETS
        least += table * chunks
        most += table * chunks
        takers += table * CROWDS * chunks
        value_sums += table * CROWDS * chunks * VALUE_DIM
        if MERGE_KEYS:
            key_sums += table * CROWDS * chunks * DIM
        # One look at all chunks serves every group: it costs as much as a survivor or two.
        mine = tl.program_id(0) * BLOCK * GROUPS + tl.arange(0, BLOCK * GROUPS)
        all_rows = tl.load(order + mine, mask=mine < room, other=-1)
        first, last = tl.min(tl.where(all_rows >= 0, all_rows, NONE), 0), tl.max(all_rows, 0)
        begin, end = chunks_of(least, most, first, last, chunks, WIDE)
        low, high = chunks_of(lowest + table * chunks, highest + table * chunks, first, last, chunks, WIDE)
    for group in range(GROUPS):
        slot = (tl.program_id(0) * GROUPS + group) * BLOCK + tl.arange(0, BLOCK)
        row = tl.load(order + slot, mask=slot < room, other=-1)
        there = row >= 0
        raw_key = rows_of(keys, row, there, k_row, k_column, DIM, BLOCK_D)
        raw_value = rows_of(values, row, there, v_row, v_column, VALUE_DIM, BLOCK_V)
        made_key = raw_key
        made_value = raw_value
        if into is not None:
            share = tl.load(own + table * rows + row, mask=there, other=1.0).to(tl.float32)
            key_sum = raw_key.to(tl.float32) * share[:, None]
            value_sum = raw_value.to(tl.float32) * share[:, None]
            same = share == 1.0
            first, last = tl.min(tl.where(there, row, NONE), 0), tl.max(row, 0)
            for chunk in range(begin, end + 1):
                if (tl.load(least + chunk) <= last) & (tl.load(most + chunk) >= first):
                    at = chunk * CHUNK + tl.arange(0, CHUNK)
                    for target in range(TARGETS):
                        goes = tl.load(into + at.to(tl.int64) * TARGETS + target, mask=at < rows, other=-1)
                        meets = (goes.to(tl.int32)[:, None] == row[None, :]) & there[None, :]
                        # Each survivor takes the first row that folds into it, then the one after it, until none has.
                        source = tl.min(tl.where(meets, at[:, None], NONE), 0)
                        source = tl.where(tl.sum(meets.to(tl.int32), 0) < CROWD, source, NONE)
                        while tl.min(source, 0) < NONE:
                            found = source < NONE
                            same = same & ~found
                            place = source.to(tl.int64) * TARGETS + target
                            part = tl.load(weight + place, mask=found, other=0.0).to(tl.float32)[:, None]
                            more_value = rows_of(values, source, found, v_row, v_column, VALUE_DIM, BLOCK_V)
                            if MERGE_KEYS:
                                more_key = rows_of(keys, source, found, k_row, k_column, DIM, BLOCK_D)
                            # Before the sums, which wait for the rows just asked for.
                            source = tl.load(following + place, mask=found, other=NONE)
                            value_sum += more_value.to(tl.float32) * part
                            if MERGE_KEYS:
                                key_sum += more_key.to(tl.float32) * part
            for some in range(low, high + 1, FEW):
                number = some + tl.arange(0, FEW)
                place, crowd = number, 0
                goes = tl.load(takers + place, mask=(number <= high) & (crowd < CROWDS), other=-1)
                while tl.max(goes, 0) >= 0:
                    # One survivor after another, each with all that these crowds bring it.
                    meets = tl.max(((goes[None, :] == row[:, None]) & there[:, None]).to(tl.int32), 0) > 0
                    taker = tl.min(tl.where(meets, goes, NONE), 0)
                    while taker < NONE:
                        takes = row == taker
                        same = same & ~takes
                        brought = tl.sum(rows_of(value_sums, place, goes == taker, VALUE_DIM, 1, VALUE_DIM, BLOCK_V), 0)
                        value_sum = tl.where(takes[:, None], value_sum + brought[None, :], value_sum)
                        if MERGE_KEYS:
                            brought_key = tl.sum(rows_of(key_sums, place, goes == taker, DIM, 1, DIM, BLOCK_D), 0)
                            key_sum = tl.where(takes[:, None], key_sum + brought_key[None, :], key_sum)
                        taker = tl.min(tl.where(meets & (goes > taker), goes, NONE), 0)
                    place, crowd = place + chunks, crowd + 1
                    goes = tl.load(takers + place, mask=(number <= high) & (crowd < CROWDS), other=-1)
            made_value = _scaled(raw_value, value_sum, same, value_scale, table * rows + row, there)
            if MERGE_KEYS:
                made_key = _scaled(raw_key, key_sum, same, key_scale, table * rows + row, there)
        out = (table * room + slot)[:, None]
        tl.store(out_keys + out * DIM + d[None, :], made_key, mask=(slot < room)[:, None] & (d < DIM)[None, :])
        inside = (slot < room)[:, None] & (v < VALUE_DIM)[None, :]
        tl.store(out_values + out * VALUE_DIM + v[None, :], made_value, mask=inside)


@triton.jit
def _scaled(raw, sum, same, scale, at, there):
    """A sum in the dtype of its rows, times a scale if there is one; where nothing came to a row, its own bits."""
    if scale is not None:
        factor = tl.load(scale + at, mask=there, other=1.0).to(tl.float32)
        sum *= factor[:, None]
        same = same & (factor == 1.0)
    # Through float32 and back a NaN might change, and what nothing folds into is to keep its bits.
    return tl.where(same[:, None], raw, sum.to(raw.dtype))
