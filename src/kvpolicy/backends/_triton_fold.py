"""The kernels of `TritonBackend.compact`: survivors in order of arrival, and onto each what folds into it.

Nothing is sorted and nothing is added atomically. `survey` notes of each chunk of rows where its marked rows arrived
and into which rows it folds, from the first to the last; who looks for something skips the chunks that cannot hold it.
`rank` counts, for each marked row, those that arrived before it. A program of `fold` owns a few survivors: it finds the
rows that fold into them, one after another, in the chunks that may hold any, reads those rows and adds them up in
registers. So a source row is read once for each of its targets, a survivor is read and written once, and every sum is
formed in one order.

One after another is slow where a survivor takes thousands of rows. So rows of a chunk that have the same survivor as
the same of their targets are a crowd if they are many (`Folding.crowd`), and `survey`, of which each chunk has a
program, adds up the crowds of its chunk. `fold` leaves those rows out, and adds the sums after the other rows.

What it costs: where rows lie in order of arrival and fold into neighbours, each program looks into a few chunks, and
the indices are read about once by either. Where rows lie anyhow, `rank` compares the chunks that overlap, up to S**2
pairs a head; where they fold anywhere, each program of `fold` reads all S entries of ``into``. There is room for as
many sums as a table might have crowds: a key and a value in float32 for each `Folding.crowd` entries of ``into``.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ._triton_rows import rows_of

__all__ = ["FOLDING", "FOLDINGS", "Folding", "fold", "fold_columns", "rank", "survey"]

_NONE = tl.constexpr(2**31 - 1)  # no row; also the most of nothing, negated, and the least of it
_NEVER = tl.constexpr(2**62)  # likewise for arrivals


class Folding(NamedTuple):
    """Survivors that a program of `fold` owns, rows of a chunk (powers of two), warps, and rows that are a crowd.

    `fold` reads fewer rows than a crowd one after another, in each chunk; smaller crowds send more sums through memory.
    ``lists`` are the warps of a program of `survey` and `rank`.
    """

    survivors: int
    chunk: int
    warps: int
    crowd: int = 16
    lists: int = 1


FOLDINGS: dict[str, Folding] = {
    "4 of 64, 1 warp": Folding(4, 64, 1),
    "4 of 128, 1 warp": Folding(4, 128, 1),
    "4 of 128, 2 warps": Folding(4, 128, 2),
    "8 of 64, 2 warps": Folding(8, 64, 2),
    "8 of 128, 4 warps": Folding(8, 128, 4),
    "16 of 128, 8 warps": Folding(16, 128, 8),
    "8 of 64, 1 warp": Folding(8, 64, 1),
    "4 of 64, 1 warp, crowds of 8": Folding(4, 64, 1, 8),
    "4 of 64, 1 warp, crowds of 32": Folding(4, 64, 1, 32),
}
FOLDING = "4 of 64, 1 warp"


@triton.jit
def _later(one, other):
    return tl.maximum(one, other)


@triton.jit
def survey(
    mask,  # bool [B, HEADS, rows]
    positions,  # int64 [B, HEADS, rows]
    into,  # int64 [B, HEADS, rows, TARGETS], contiguous; None: nothing folds, and there is neither what follows here
    weight,  # floating, like ``into``
    keys,  # [B, HEADS, rows, DIM]; None: they do not fold
    values,  # [B, HEADS, rows, VALUE_DIM]
    marked,  # out: int32 [B, HEADS, chunks], marked rows of a chunk
    earliest,  # out: int64 [B, HEADS, chunks], their first arrival
    latest,  # out: int64 [B, HEADS, chunks], their last
    least,  # out: int32 [B, HEADS, chunks], the first row that rows of the chunk fold into which are no crowd
    most,  # out: int32 [B, HEADS, chunks], the last
    lowest,  # out: int32 [B, HEADS, chunks], the first row that a crowd of the chunk folds into
    highest,  # out: int32 [B, HEADS, chunks], the last
    takers,  # out: int32 [B, HEADS, CROWDS, chunks], the row that each crowd of the chunk folds into, -1 after the last
    key_sums,  # out: float32 [B, HEADS, CROWDS, chunks, DIM], what it brings there, or None
    value_sums,  # out: float32 [B, HEADS, CROWDS, chunks, VALUE_DIM]
    m_batch,
    m_head,
    m_row,
    p_batch,
    p_head,
    p_row,
    k_batch,
    k_head,
    k_row,
    k_column,
    v_batch,
    v_head,
    v_row,
    v_column,
    rows,
    HEADS: tl.constexpr,
    TARGETS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,  # rows that are compared with the chunk's, and read, at once
    CROWD: tl.constexpr,
    CROWDS: tl.constexpr,  # how many a chunk has at most
):
    """Programs (chunks, B * HEADS)."""
    chunk, table = tl.program_id(0), tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    batch, head = table // HEADS, table % HEADS
    at = (chunk * CHUNK + tl.arange(0, CHUNK)).to(tl.int64)
    here = tl.load(mask + batch * m_batch + head * m_head + at * m_row, mask=at < rows, other=0) != 0
    came = tl.load(positions + batch * p_batch + head * p_head + at * p_row, mask=here, other=0)
    note = table * chunks + chunk
    tl.store(marked + note, tl.sum(here.to(tl.int32), 0))
    tl.store(earliest + note, tl.min(tl.where(here, came, _NEVER), 0))
    tl.store(latest + note, tl.max(tl.where(here, came, -_NEVER), 0))
    if into is not None:
        into += table * rows * TARGETS
        weight += table * rows * TARGETS
        values += batch * v_batch + head * v_head
        if keys is not None:
            keys += batch * k_batch + head * k_head
        first, last = _NONE, -_NONE
        low, high, crowds = _NONE, -_NONE, 0
        for target in range(TARGETS):
            goes = tl.load(into + at * TARGETS + target, mask=at < rows, other=-1).to(tl.int32)
            company = tl.zeros([CHUNK], tl.int32)
            for some in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, rows), FEW):
                other = (some + tl.arange(0, FEW)).to(tl.int64)
                theirs = tl.load(into + other * TARGETS + target, mask=other < rows, other=-1)
                company += tl.sum((theirs[None, :] == goes[:, None]).to(tl.int32), 1)
            many = (goes >= 0) & (company >= CROWD)
            alone = (goes >= 0) & ~many
            first = tl.minimum(first, tl.min(tl.where(alone, goes, _NONE), 0))
            last = tl.maximum(last, tl.max(tl.where(alone, goes, -_NONE), 0))
            low = tl.minimum(low, tl.min(tl.where(many, goes, _NONE), 0))
            high = tl.maximum(high, tl.max(tl.where(many, goes, -_NONE), 0))
            # One crowd after another: every row is read for the one that it belongs to.
            taker = tl.min(tl.where(many, goes, _NONE), 0)
            while taker < _NONE:
                key_sum = tl.zeros([FEW, BLOCK_D], tl.float32)
                value_sum = tl.zeros([FEW, BLOCK_V], tl.float32)
                for some in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, rows), FEW):
                    source = (some + tl.arange(0, FEW)).to(tl.int64)
                    member = tl.load(into + source * TARGETS + target, mask=source < rows, other=-1) == taker
                    part = tl.load(weight + source * TARGETS + target, mask=member, other=0.0).to(tl.float32)[:, None]
                    if keys is not None:
                        more_key = rows_of(keys, source, member, k_row, k_column, DIM, BLOCK_D)
                        key_sum += more_key.to(tl.float32) * part
                    more_value = rows_of(values, source, member, v_row, v_column, VALUE_DIM, BLOCK_V)
                    value_sum += more_value.to(tl.float32) * part
                place = (table * CROWDS + crowds) * chunks + chunk
                tl.store(takers + place, taker)
                d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
                if keys is not None:
                    tl.store(key_sums + place * DIM + d, tl.sum(key_sum, 0), mask=d < DIM)
                tl.store(value_sums + place * VALUE_DIM + v, tl.sum(value_sum, 0), mask=v < VALUE_DIM)
                crowds += 1
                taker = tl.min(tl.where(many & (goes > taker), goes, _NONE), 0)
        tl.store(least + note, first)
        tl.store(most + note, last)
        tl.store(lowest + note, low)
        tl.store(highest + note, high)
        for spare in range(crowds, CROWDS):
            tl.store(takers + (table * CROWDS + spare) * chunks + chunk, -1)


@triton.jit
def _chunks(least, most, first, last, chunks, WIDE: tl.constexpr):
    """The first and the last chunk whose range, ``least`` to ``most``, meets ``first`` to ``last``."""
    begin, end = _NONE, -1
    for some in range(0, chunks, WIDE):
        number = some + tl.arange(0, WIDE)
        low = tl.load(least + number, mask=number < chunks, other=0)
        high = tl.load(most + number, mask=number < chunks, other=0)
        meets = (number < chunks) & (low <= last) & (high >= first)
        begin = tl.minimum(begin, tl.min(tl.where(meets, number, _NONE), 0))
        end = tl.maximum(end, tl.max(tl.where(meets, number, -1), 0))
    return begin, end


@triton.jit
def rank(
    mask,  # bool [B, HEADS, rows]
    positions,  # int64 [B, HEADS, rows]
    marked,  # int32 [B, HEADS, chunks], from `survey`, as are the next two
    earliest,
    latest,
    order,  # out: int32 [B, HEADS, room], the marked rows in order of arrival, -1 after the last
    arrivals,  # out: int64 [B, HEADS, room], when each arrived, -1 after the last; or None
    taken,  # out: bool [B, HEADS, room], whether there is one; or None
    total,  # out: int32 [B, HEADS], how many are marked; or None
    m_batch,
    m_head,
    m_row,
    p_batch,
    p_head,
    p_row,
    rows,
    room,
    HEADS: tl.constexpr,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,  # rows of a chunk that are compared with another's at once
    WIDE: tl.constexpr,
):
    """Programs (chunks, B * HEADS); a chunk also empties as many places of ``order``: ``room`` is at most ``rows``."""
    chunk, table = tl.program_id(0), tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    batch, head = table // HEADS, table % HEADS
    mask += batch * m_batch + head * m_head
    positions += batch * p_batch + head * p_head
    marked += table * chunks
    earliest += table * chunks
    latest += table * chunks
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    here = tl.load(mask + at.to(tl.int64) * m_row, mask=at < rows, other=0) != 0
    came = tl.load(positions + at.to(tl.int64) * p_row, mask=here, other=0)
    first, last = tl.load(earliest + chunk), tl.load(latest + chunk)

    before, count, rivals = 0, 0, 0
    for some in range(0, chunks, WIDE):
        number = some + tl.arange(0, WIDE)
        held = tl.load(marked + number, mask=number < chunks, other=0)
        low = tl.load(earliest + number, mask=number < chunks, other=0)
        high = tl.load(latest + number, mask=number < chunks, other=0)
        count += tl.sum(held, 0)
        before += tl.sum(tl.where(high < first, held, 0), 0)
        rivals += tl.sum(((held > 0) & (low <= last) & (high >= first)).to(tl.int32), 0)

    # Usually a chunk overlaps with itself alone and its rows ascend: then places are counted, not compared.
    ascends = tl.associative_scan(tl.where(here, came, -_NEVER), 0, _later) == came
    place = before + tl.cumsum(here.to(tl.int32), 0) - 1
    if (rivals > 1) | (tl.min((ascends | ~here).to(tl.int32), 0) == 0):
        place = tl.zeros([CHUNK], tl.int32) + before
        begin, end = _chunks(earliest, latest, first, last, chunks, WIDE)
        for other in range(begin, end + 1):
            if (tl.load(earliest + other) <= last) & (tl.load(latest + other) >= first):
                for some in range(other * CHUNK, other * CHUNK + CHUNK, FEW):
                    their = some + tl.arange(0, FEW)
                    there = tl.load(mask + their.to(tl.int64) * m_row, mask=their < rows, other=0) != 0
                    theirs = tl.load(positions + their.to(tl.int64) * p_row, mask=there, other=0)
                    sooner = (theirs[None, :] < came[:, None]) | (
                        (theirs[None, :] == came[:, None]) & (their[None, :] < at[:, None])
                    )
                    place += tl.sum((there[None, :] & sooner).to(tl.int32), 1)

    table *= room
    stays = here & (place < room)
    tl.store(order + table + place, at, mask=stays)
    empty = (at >= count) & (at < room)
    tl.store(order + table + at, tl.full([CHUNK], -1, tl.int32), mask=empty)
    if arrivals is not None:
        tl.store(arrivals + table + place, came, mask=stays)
        tl.store(arrivals + table + at, tl.full([CHUNK], -1, tl.int64), mask=empty)
        tl.store(taken + table + place, tl.full([CHUNK], 1, tl.int1), mask=stays)
        tl.store(taken + table + at, tl.full([CHUNK], 0, tl.int1), mask=empty)
    if total is not None and chunk == 0:
        tl.store(total + tl.program_id(1), count)


@triton.jit
def fold(
    keys,  # [B, HEADS, rows, DIM]
    values,  # [B, HEADS, rows, VALUE_DIM]
    order,  # int32 [B, HEADS, room], from `rank`: the rows that stay, -1 for none
    into,  # int64 [B, HEADS, rows, TARGETS], contiguous as all that follow; None: nothing folds
    weight,  # floating, like ``into``
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
):
    """Programs (blocks of survivors, B * HEADS). What is found for the keys serves the values, too."""
    table = tl.program_id(1).to(tl.int64)
    keys += table // HEADS * k_batch + table % HEADS * k_head
    values += table // HEADS * v_batch + table % HEADS * v_head
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(order + table * room + slot, mask=slot < room, other=-1)
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
        into += table * rows * TARGETS
        weight += table * rows * TARGETS
        least += table * chunks
        most += table * chunks
        first, last = tl.min(tl.where(there, row, _NONE), 0), tl.max(row, 0)
        begin, end = _chunks(least, most, first, last, chunks, WIDE)
        for chunk in range(begin, end + 1):
            if (tl.load(least + chunk) <= last) & (tl.load(most + chunk) >= first):
                at = chunk * CHUNK + tl.arange(0, CHUNK)
                for target in range(TARGETS):
                    goes = tl.load(into + at.to(tl.int64) * TARGETS + target, mask=at < rows, other=-1).to(tl.int32)
                    meets = (goes[None, :] == row[:, None]) & there[:, None]
                    meets = meets & (tl.sum(meets.to(tl.int32), 1) < CROWD)[:, None]
                    # Each survivor takes the first row that folds into it, then the next one, until none has any.
                    source = tl.min(tl.where(meets, at[None, :], _NONE), 1)
                    while tl.min(source, 0) < _NONE:
                        found = source < _NONE
                        same = same & ~found
                        part = tl.load(weight + source.to(tl.int64) * TARGETS + target, mask=found, other=0.0)
                        part = part.to(tl.float32)[:, None]
                        more_value = rows_of(values, source, found, v_row, v_column, VALUE_DIM, BLOCK_V)
                        if MERGE_KEYS:
                            more_key = rows_of(keys, source, found, k_row, k_column, DIM, BLOCK_D)
                        # Before the sums, which wait for the rows just asked for.
                        source = tl.min(tl.where(meets & (at[None, :] > source[:, None]), at[None, :], _NONE), 1)
                        value_sum += more_value.to(tl.float32) * part
                        if MERGE_KEYS:
                            key_sum += more_key.to(tl.float32) * part
        begin, end = _chunks(lowest + table * chunks, highest + table * chunks, first, last, chunks, WIDE)
        takers += table * CROWDS * chunks
        value_sums += table * CROWDS * chunks * VALUE_DIM
        if MERGE_KEYS:
            key_sums += table * CROWDS * chunks * DIM
        for some in range(begin, end + 1, FEW):
            number = some + tl.arange(0, FEW)
            place, crowd = number, 0
            goes = tl.load(takers + place, mask=(number <= end) & (crowd < CROWDS), other=-1)
            while tl.max(goes, 0) >= 0:
                # One survivor after another, each with all that these crowds bring it.
                meets = tl.max(((goes[None, :] == row[:, None]) & there[:, None]).to(tl.int32), 0) > 0
                taker = tl.min(tl.where(meets, goes, _NONE), 0)
                while taker < _NONE:
                    takes = row == taker
                    same = same & ~takes
                    brought = tl.sum(rows_of(value_sums, place, goes == taker, VALUE_DIM, 1, VALUE_DIM, BLOCK_V), 0)
                    value_sum = tl.where(takes[:, None], value_sum + brought[None, :], value_sum)
                    if MERGE_KEYS:
                        brought_key = tl.sum(rows_of(key_sums, place, goes == taker, DIM, 1, DIM, BLOCK_D), 0)
                        key_sum = tl.where(takes[:, None], key_sum + brought_key[None, :], key_sum)
                    taker = tl.min(tl.where(meets & (goes > taker), goes, _NONE), 0)
                place, crowd = place + chunks, crowd + 1
                goes = tl.load(takers + place, mask=(number <= end) & (crowd < CROWDS), other=-1)
        made_value = _scaled(raw_value, value_sum, same, value_scale, table * rows + row, there)
        if MERGE_KEYS:
            made_key = _scaled(raw_key, key_sum, same, key_scale, table * rows + row, there)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
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
        first, last = tl.min(tl.where(there, row, _NONE), 0), tl.max(row, 0)
        begin, end = _chunks(least + note, most + note, first, last, chunks, WIDE)
        low, high = _chunks(lowest + note, highest + note, first, last, chunks, WIDE)
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
                meets = (goes[None, :] == row[:, None]) & there[:, None]
                sum += tl.sum(tl.where(meets, gives[None, :], tl.zeros_like(gives)[None, :]), 1).to(sum.dtype)
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
