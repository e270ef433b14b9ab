"""The kernels of `decode_attention`: one query's attention to a table, and the share of it that each row received.

Decoding is bound by memory, so a program owns a key/value head and reads each row of it once for all the query heads
that share it, with the running maximum of FlashAttention (arXiv 2205.14135, algorithm 1). It stores the logits on its
way, four bytes each, and makes shares of them when the last maximum is known: one launch does it all. Where heads are
too few for a GPU several programs share one (flash-decoding), and a second kernel brings their parts together.

As in `mass`, logits are powers of two, and what is hidden is selected away: not even NaN comes through.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mass import LOG2_E

__all__ = ["attend", "bring_together"]

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def _tile(matrix, first, row, column, wanted, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D]: rows ``first`` and on of a matrix [., DIM] with these strides, zeros where not ``wanted``."""
    at, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    origin = matrix + tl.cast(first, tl.int64) * row  # a long table's offsets do not fit in 32 bits
    inside = wanted[:, None] & (d < DIM)[None, :]
    return tl.load(origin + at[:, None] * row + d[None, :] * column, mask=inside, other=0.0)


@triton.jit
def _capped(products, scale, softcap):
    """Logits, times log2(e), of products of queries and keys."""
    if softcap is None:
        logits = products * (scale * _LOG2_E)
    else:
        # tanh(x) = 1 - 2 / (exp(2x) + 1); from 2**64 on that is 1, and must not overflow.
        power = tl.exp2(tl.minimum(products * (scale / softcap * 2.0 * _LOG2_E), 64.0))
        logits = (1.0 - 2.0 / (power + 1.0)) * (softcap * _LOG2_E)
    return logits


@triton.jit
def _level(most):
    """What to subtract from logits: the maximum, but 0 where nothing is seen yet, as -inf - -inf would be NaN."""
    return tl.where(most == float("-inf"), 0.0, most)


@triton.jit
def _log_sum(most, power, sinks, head, is_head):
    """log2 of the sum of a softmax, its sink included; +inf for a query that sees nothing, so that it pays nothing."""
    blind = most == float("-inf")
    level = _level(most)
    if sinks is not None:
        sink = tl.load(sinks + head, mask=is_head, other=0.0).to(tl.float32) * _LOG2_E
        higher = tl.maximum(level, sink)
        power = power * tl.exp2(level - higher) + tl.exp2(sink - higher)
        level = higher
    return tl.where(blind, float("inf"), level + tl.log2(tl.where(blind, 1.0, power)))


# What grows with the table, in which nothing is aligned by it: specialised, it would be compiled anew on its way.
@triton.jit(do_not_specialize=["rows", "s_batch", "s_head", "b_batch", "b_head"])
def attend(
    queries,  # [B, HEADS * GROUPS, 1, DIM]
    keys,  # [B, HEADS, rows, DIM]; or flat, with strides 0, 0 before those of a row
    values,  # the same with VALUE_DIM
    visible,  # bool [B, HEADS, rows], or None
    base,  # int64 [B, HEADS], or None
    length,  # int [B, HEADS], or None
    bias,  # float32 [B, HEADS, rows], or None
    sinks,  # [HEADS * GROUPS], or None
    out,  # [B, HEADS * GROUPS, VALUE_DIM]; with several parts, float32 [PARTS, ...] and not yet divided by the sum
    sums,  # float32 [2, PARTS, B * HEADS * GROUPS]: maximum and sum of each part, if there are several
    logits,  # float32 [B, HEADS * GROUPS, rows], times log2(e), written where a slot exists
    shares,  # float32 [B, HEADS, rows]
    q_batch,
    q_head,
    q_column,
    k_batch,
    k_head,
    k_row,
    k_column,
    v_batch,
    v_head,
    v_row,
    v_column,
    s_batch,
    s_head,
    s_row,
    b_batch,
    b_head,
    b_row,
    tables,  # B * HEADS
    rows,
    scale,
    softcap,  # or None
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,  # query heads that share a key/value head
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PARTS: tl.constexpr,  # of a head, a power of two
    ALONE: tl.constexpr,  # one program does all of a head, and finishes it
    SHARES: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_G: tl.constexpr,  # 1 for a single query head
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    RESCALED: tl.constexpr,
):
    """Programs (B * HEADS, parts of a head, blocks of query heads)."""
    table, part = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    batch, head = table // HEADS, table % HEADS
    queries += batch * q_batch + head * GROUPS * q_head
    keys += batch * k_batch + head * k_head
    values += batch * v_batch + head * v_head
    if base is not None:
        start = tl.load(base + table)
        keys += start * k_row
        values += start * v_row
    if visible is not None:
        visible += batch * s_batch + head * s_head
    if bias is not None:
        bias += batch * b_batch + head * b_head
    logits += table * GROUPS * rows

    held = rows
    if length is not None:
        held = tl.minimum(rows, tl.load(length + table).to(tl.int32))
    each = tl.cdiv(tl.cdiv(held, PARTS), BLOCK_S) * BLOCK_S  # a short head is shared as evenly as a long one
    begin = part * each
    end = tl.minimum(begin + each, held)

    g = tl.program_id(2) * BLOCK_G + tl.arange(0, BLOCK_G)
    is_head = g < GROUPS
    d = tl.arange(0, BLOCK_D)
    if BLOCK_G == 1:
        asked = tl.load(queries + d * q_column, mask=d < DIM, other=0.0).to(tl.float32)
        # Each row of a tile runs a softmax of its own, down the head: threads need not meet before the end.
        most = tl.full([BLOCK_S], float("-inf"), tl.float32)
        power = tl.zeros([BLOCK_S], tl.float32)
        summed = tl.zeros([BLOCK_S, BLOCK_V], tl.float32)
    else:
        where = queries + g[:, None] * q_head + d[None, :] * q_column
        asked = tl.load(where, mask=is_head[:, None] & (d < DIM)[None, :], other=0.0)
        most = tl.full([BLOCK_G], float("-inf"), tl.float32)
        power = tl.zeros([BLOCK_G], tl.float32)
        summed = tl.zeros([BLOCK_G, BLOCK_V], tl.float32)
    for first in range(begin, end, BLOCK_S):
        slot = first + tl.arange(0, BLOCK_S)
        exists = slot < end
        key = _tile(keys, first, k_row, k_column, exists, DIM, BLOCK_S, BLOCK_D)
        seen = exists
        if visible is not None:
            seen = tl.load(visible + slot * s_row, mask=exists, other=0).to(tl.int1)
        # Hidden rows are not read: on an H200 it took longer to read them and to select them away.
        value = _tile(values, first, v_row, v_column, seen, VALUE_DIM, BLOCK_S, BLOCK_V)
        more = tl.zeros([BLOCK_S], tl.float32)
        if bias is not None:
            more = tl.load(bias + slot * b_row, mask=seen, other=0.0) * _LOG2_E
        if BLOCK_G == 1:
            found = _capped(tl.sum(key.to(tl.float32) * asked[None, :], 1), scale, softcap) + more
            found = tl.where(seen, found, float("-inf"))
            if SHARES:
                tl.store(logits + slot, found, mask=exists)
            higher = tl.maximum(most, found)
            level = _level(higher)
            fade, paid = tl.exp2(most - level), tl.exp2(found - level)
            power = power * fade + paid
            summed = summed * fade[:, None] + paid[:, None] * value.to(tl.float32)
        else:
            # For float32 only, as in `mass`.
            products = tl.dot(asked, tl.trans(key), input_precision="tf32x3")
            found = _capped(products, scale, softcap) + more[None, :]
            found = tl.where(seen[None, :], found, float("-inf"))
            if SHARES:
                there = logits + tl.cast(g, tl.int64)[:, None] * rows + slot[None, :]
                tl.store(there, found, mask=is_head[:, None] & exists[None, :])
            higher = tl.maximum(most, tl.max(found, 1))
            level = _level(higher)
            fade, paid = tl.exp2(most - level), tl.exp2(found - level[:, None])
            power = power * fade + tl.sum(paid, 1)
            summed = tl.dot(paid.to(value.dtype), value, summed * fade[:, None], input_precision="tf32x3")
        most = higher
    if BLOCK_G == 1:
        highest = tl.max(most, 0, keep_dims=True)
        fade = tl.exp2(most - _level(highest))
        power = tl.sum(power * fade, 0, keep_dims=True)
        summed = tl.sum(summed * fade[:, None], 0, keep_dims=True)
        most = highest

    asking = table * GROUPS + g
    e = tl.arange(0, BLOCK_V)
    in_out = is_head[:, None] & (e < VALUE_DIM)[None, :]
    if ALONE:
        sum_of = _log_sum(most, power, sinks, head * GROUPS + g, is_head)
        made = summed * tl.exp2(most - sum_of)[:, None]
        tl.store(out + asking[:, None] * VALUE_DIM + e[None, :], made.to(out.dtype.element_ty), mask=in_out)
        if SHARES:
            tl.debug_barrier()  # logits that other threads stored
            for first in range(0, rows, RESCALED):
                slot = first + tl.arange(0, RESCALED)
                there = logits + tl.cast(g, tl.int64)[:, None] * rows + slot[None, :]
                found = tl.load(there, mask=is_head[:, None] & (slot < held)[None, :], other=float("-inf"))
                share = tl.exp2(found - sum_of[:, None])
                share = tl.sum(share, 0) / GROUPS if MEAN else tl.max(share, 0)
                tl.store(shares + table * rows + slot, share, mask=slot < rows)
    else:
        place = tl.cast(part, tl.int64) * tables * GROUPS + asking
        tl.store(sums + place, most, mask=is_head)
        tl.store(sums + tables * GROUPS * PARTS + place, power, mask=is_head)
        tl.store(out + place[:, None] * VALUE_DIM + e[None, :], summed, mask=in_out)


@triton.jit(do_not_specialize=["rows"])
def bring_together(
    parts,  # float32 [PARTS, B * HEADS * GROUPS, VALUE_DIM], from `attend`, as are the sums and logits
    sums,  # float32 [2, PARTS, B * HEADS * GROUPS]
    length,  # int [B, HEADS], or None
    sinks,  # [HEADS * GROUPS], or None
    logits,  # float32 [B, HEADS * GROUPS, rows]
    out,  # [B, HEADS * GROUPS, VALUE_DIM]
    shares,  # float32 [B, HEADS, rows]
    tables,
    rows,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    SHARES: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_V: tl.constexpr,
    RESCALED: tl.constexpr,
):
    """Programs (B * HEADS, i): the output of the i-th query head of each group, and the i-th block of shares."""
    table, i = tl.cast(tl.program_id(0), tl.int64), tl.program_id(1)
    p, e = tl.arange(0, PARTS), tl.arange(0, BLOCK_V)
    if i < GROUPS:
        place = tl.cast(p, tl.int64) * tables * GROUPS + table * GROUPS + i
        most, sum_of = _whole(sums, place, tables * GROUPS * PARTS, sinks, table % HEADS * GROUPS + i)
        part = tl.load(parts + place[:, None] * VALUE_DIM + e[None, :], mask=(e < VALUE_DIM)[None, :], other=0.0)
        made = tl.sum(part * tl.exp2(most - sum_of)[:, None], 0)
        there = out + (table * GROUPS + i) * VALUE_DIM + e
        tl.store(there, made.to(out.dtype.element_ty), mask=e < VALUE_DIM)
    if SHARES and i * RESCALED < rows:
        held = rows
        if length is not None:
            held = tl.minimum(rows, tl.load(length + table).to(tl.int32))
        slot = i * RESCALED + tl.arange(0, RESCALED)
        share = tl.zeros([RESCALED], tl.float32)
        for g in range(GROUPS):
            place = tl.cast(p, tl.int64) * tables * GROUPS + table * GROUPS + g
            _, sum_of = _whole(sums, place, tables * GROUPS * PARTS, sinks, table % HEADS * GROUPS + g)
            found = tl.load(logits + (table * GROUPS + g) * rows + slot, mask=slot < held, other=float("-inf"))
            one = tl.exp2(found - sum_of)
            share = share + one / GROUPS if MEAN else tl.maximum(share, one)
        tl.store(shares + table * rows + slot, share, mask=slot < rows)


@triton.jit
def _whole(sums, place, second, sinks, head):
    """The maximum of each part of a softmax, and log2 of the sum of the whole."""
    most, power = tl.load(sums + place), tl.load(sums + second + place)
    highest = tl.max(most, 0)
    return most, _log_sum(highest, tl.sum(power * tl.exp2(most - _level(highest)), 0), sinks, head, True)
