"""What `TritonBackend.compact` knows of a table before it moves a row: who stays, in which order, and who folds where.

Nothing is sorted. `survey` notes of each chunk of rows where its marked rows arrived and into which rows it folds, from
the first to the last; who looks for something skips the chunks that cannot hold it (`chunks_of`). `rank` counts, for
each marked row, those that arrived before it.

Rows of a chunk that have the same survivor as the same of their targets are a crowd if they are many
(`Folding.crowd`): one after another they would take long, so `survey`, of which each chunk has a program, adds them up.

What it costs: where rows lie in order of arrival, indices are read about once. Where they lie anyhow, `rank` compares
the chunks that overlap, up to S**2 pairs a head. There is room for as many sums as a table might have crowds: a key and
a value in float32 for each `Folding.crowd` entries of ``into``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import rows_of

__all__ = ["NONE", "chunks_of", "rank", "survey"]

NONE = tl.constexpr(2**31 - 1)  # no row; also the most of nothing, negated, and the least of it
_NEVER = tl.constexpr(2**62)  # likewise for arrivals


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
    following,  # out: int32 like ``into``, the next row of the chunk with the same of its targets, or none
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
    FEW: tl.constexpr,  # rows that are read at once
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
        following += table * rows * TARGETS
        values += batch * v_batch + head * v_head
        if keys is not None:
            keys += batch * k_batch + head * k_head
        first, last = NONE, -NONE
        low, high, crowds = NONE, -NONE, 0
        for target in range(TARGETS):
            goes = tl.load(into + at * TARGETS + target, mask=at < rows, other=-1).to(tl.int32)
            # What one thread compares with lies in the first dimension, so that it sums up by itself.
            alike = goes[:, None] == goes[None, :]
            company = tl.sum(alike.to(tl.int32), 0)
            later = alike & (at[:, None] > at[None, :])
            after = tl.min(tl.where(later, at.to(tl.int32)[:, None], NONE), 0)
            tl.store(following + at * TARGETS + target, after, mask=goes >= 0)
            many = (goes >= 0) & (company >= CROWD)
            alone = (goes >= 0) & ~many
            first = tl.minimum(first, tl.min(tl.where(alone, goes, NONE), 0))
            last = tl.maximum(last, tl.max(tl.where(alone, goes, -NONE), 0))
            low = tl.minimum(low, tl.min(tl.where(many, goes, NONE), 0))
            high = tl.maximum(high, tl.max(tl.where(many, goes, -NONE), 0))
            # One crowd after another: every row is read for the one that it belongs to.
            taker = tl.min(tl.where(many, goes, NONE), 0)
            while taker < NONE:
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
                taker = tl.min(tl.where(many & (goes > taker), goes, NONE), 0)
        tl.store(least + note, first)
        tl.store(most + note, last)
        tl.store(lowest + note, low)
        tl.store(highest + note, high)
        for spare in range(crowds, CROWDS):
            tl.store(takers + (table * CROWDS + spare) * chunks + chunk, -1)


@triton.jit
def chunks_of(least, most, first, last, chunks, WIDE: tl.constexpr):
    """The first and the last chunk whose range, ``least`` to ``most``, meets ``first`` to ``last``."""
    begin, end = NONE, -1
    for some in range(0, chunks, WIDE):
        number = some + tl.arange(0, WIDE)
        low = tl.load(least + number, mask=number < chunks, other=0)
        high = tl.load(most + number, mask=number < chunks, other=0)
        meets = (number < chunks) & (low <= last) & (high >= first)
        begin = tl.minimum(begin, tl.min(tl.where(meets, number, NONE), 0))
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
        begin, end = chunks_of(earliest, latest, first, last, chunks, WIDE)
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
