"""The kernels of `TritonBackend.attention_mass`: each query's log-sum-exp, then each row's share of every query.

The attention that row ``j`` receives is ``mass_j = sum_i exp(s_ij - lse_i)`` over the queries ``i`` that see it. The
programs of `log_sum_exp` own queries and pass over the rows, with the running maximum of FlashAttention (arXiv
2205.14135, algorithm 1) but no output; those of `column_sums` own rows and pass over the queries, so that every sum is
formed by one program, in one order. Logits are formed twice and never stored.

Both work in powers of two, which is what the hardware exponentiates. A row is seen by a query if ``arrival <= sees``;
`FAR` and -1 stand for rows and queries that do not count. Tiles may read anything where these hide it: what is hidden
is selected away, not multiplied by zero, so that not even NaN comes through. `horizons` notes for each tile the row
that came last and the query that sees least: where these two see each other, so do all, and nothing is masked.

Few queries (a window, a decode step) are too few programs for a device. Then `log_sum_exp` also splits the rows, and
`column_sums` joins the parts; and the query heads of a key/value head may be laid in one tile (`STACK`), which reads
the keys once for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

__all__ = [
    "DEFAULT",
    "FAR",
    "INTERPRETED",
    "LOG2_E",
    "TILINGS",
    "Tiles",
    "Tiling",
    "column_sums",
    "horizons",
    "log_sum_exp",
]

# Triton reads the variable TRITON_INTERPRET where a kernel is defined, not where it is launched.
INTERPRETED: bool = triton.knobs.runtime.interpret

FAR = 2**31 - 1
LOG2_E = 1.4426950408889634

_FAR = tl.constexpr(FAR)
_LOG2_E = tl.constexpr(LOG2_E)


class Tiles(NamedTuple):
    """What a program of one kernel works on at a time; rows and queries are powers of two, at least 16."""

    queries: int
    rows: int
    warps: int
    stages: int


class Tiling(NamedTuple):
    """The tiles of both passes: those that own queries form sums, those that own rows form shares."""

    sums: Tiles
    shares: Tiles


# For 16-bit numbers and heads of at most 128; the first numbers are what a program owns. All fit on an sm_90 unspilled.
TILINGS: dict[str, Tiling] = {
    "128x64, 4 warps": Tiling(Tiles(128, 64, 4, 3), Tiles(64, 128, 4, 3)),
    "128x64, 8 warps": Tiling(Tiles(128, 64, 8, 3), Tiles(64, 128, 8, 3)),
    "128x128, 8 warps": Tiling(Tiles(128, 128, 8, 2), Tiles(128, 128, 8, 2)),
    "128x128, 8 warps, 3 stages": Tiling(Tiles(128, 128, 8, 3), Tiles(128, 128, 8, 3)),
    "64x128, 4 warps": Tiling(Tiles(64, 128, 4, 2), Tiles(128, 64, 4, 2)),
    "64x64, 4 warps": Tiling(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3)),
    "256x64, 8 warps": Tiling(Tiles(256, 64, 8, 2), Tiles(64, 256, 8, 2)),
    "256x64, 8 warps, 3 stages": Tiling(Tiles(256, 64, 8, 3), Tiles(64, 256, 8, 3)),
    "128x128 and 128x64, 8 warps": Tiling(Tiles(128, 128, 8, 2), Tiles(64, 128, 8, 3)),
}
DEFAULT = "128x64, 4 warps"


@triton.jit
def _tile(matrix, at, count, offsets, column, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D]: rows ``at`` of a matrix with ``count`` rows at these offsets, zeros outside of it."""
    d = tl.arange(0, BLOCK_D)
    inside = (at < count)[:, None]
    if DIM < BLOCK_D:
        inside = inside & (d < DIM)[None, :]
    return tl.load(matrix + offsets[:, None] + d[None, :] * column, mask=inside, other=0.0)


@triton.jit
def _query_tile(
    queries, at, total, q_head, q_row, q_column, STACK: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """[BLOCK, BLOCK_D]: of one query head, or of ``STACK`` heads one after another."""
    if STACK == 1:
        offsets = at.to(tl.int64) * q_row
    else:
        offsets = (at // total).to(tl.int64) * q_head + (at % total).to(tl.int64) * q_row
    return _tile(queries, at, total * STACK, offsets, q_column, DIM, BLOCK_D)


@triton.jit
def _products(one, other, scale, softcap, FOLDED: tl.constexpr):
    """[M, N] of tiles [M, D] and [N, D]: logits times log2(e); where ``FOLDED``, plain products."""
    # For float32 only. The default, tf32, is off by 1e-3; "ieee" leaves the matrix units and spills its registers.
    logits = tl.dot(one, tl.trans(other), input_precision="tf32x3")
    if softcap is not None:
        # tanh(x) = 1 - 2 / (exp(2x) + 1); from 2**64 on that is 1, and must not overflow.
        power = tl.exp2(tl.minimum(logits * (scale / softcap * 2.0 * _LOG2_E), 64.0))
        logits = (1.0 - 2.0 / (power + 1.0)) * (softcap * _LOG2_E)
    elif not FOLDED:
        logits *= scale * _LOG2_E
    return logits


@triton.jit
def horizons(
    positions,  # int64 [B, HEADS, rows]
    valid,  # bool [B, HEADS, rows]
    last,  # int64 [B, total]: the last arrival that a query sees
    counted,  # bool [B, total]
    arrival,  # out: int32 [B, HEADS, rows], FAR where a row is invalid
    sees,  # out: int32 [B, total], -1 where a query does not count
    latest,  # out: int32 [B, HEADS, tiles], the largest arrival of a tile of rows; FAR where a row is missing
    least,  # out: int32 [B, tiles], the smallest of ``sees`` of a tile of queries
    p_batch,
    p_head,
    p_row,
    v_batch,
    v_head,
    v_row,
    l_batch,
    l_query,
    c_batch,
    c_query,
    total,
    rows,
    HEADS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Programs (the more of the tiles of queries and of rows, B * HEADS)."""
    block, table = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = table // HEADS, table % HEADS
    slot = block * BLOCK_S + tl.arange(0, BLOCK_S)
    at = slot.to(tl.int64)
    there = tl.load(valid + batch * v_batch + head * v_head + at * v_row, mask=slot < rows, other=0) != 0
    came = tl.load(positions + batch * p_batch + head * p_head + at * p_row, mask=slot < rows, other=0)
    came = tl.where(there, came, _FAR).to(tl.int32)
    tl.store(arrival + table * rows + slot, came, mask=slot < rows)
    if block * BLOCK_S < rows:
        tl.store(latest + table * tl.cdiv(rows, BLOCK_S) + block, tl.max(came, 0))
    if (head == 0) & (block * BLOCK_Q < total):
        asking = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
        real = tl.load(counted + batch * c_batch + asking.to(tl.int64) * c_query, mask=asking < total, other=0) != 0
        until = tl.load(last + batch * l_batch + asking.to(tl.int64) * l_query, mask=asking < total, other=0)
        until = tl.where(real, tl.minimum(until, _FAR - 1), -1).to(tl.int32)
        tl.store(sees + batch * total + asking, until, mask=asking < total)
        bound = tl.min(tl.where(asking < total, until, _FAR - 1), 0)
        tl.store(least + batch * tl.cdiv(total, BLOCK_Q) + block, bound)


@triton.jit
def log_sum_exp(
    queries,  # [B, Hq, total, DIM]; Hq = HEADS * STACK
    keys,  # [B, HEADS / GROUPS, rows, DIM]
    sees,  # int32 [B, total], from `horizons`, as are the next two
    arrival,  # int32 [B, HEADS / GROUPS, rows]
    latest,  # int32 [B, HEADS / GROUPS, tiles of rows]
    bias,  # float32 [B, HEADS / GROUPS, rows], times log2(e), or None
    sinks,  # float32 [Hq], times log2(e), or None
    out,  # float32 [splits, B, Hq, total]: log2 of the sum over a part of the rows; -inf for one that sees none of them
    q_batch,
    q_head,
    q_row,
    q_column,
    k_batch,
    k_head,
    k_row,
    k_column,
    total,
    rows,
    part,  # rows of a split, a multiple of BLOCK_S
    scale,
    softcap,  # or None
    FOLDED: tl.constexpr,  # the scale is multiplied in where logits are exponentiated
    IN_ORDER: tl.constexpr,  # the queries' own rows end the table in order: nothing above the diagonal is seen
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    STACK: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Programs (blocks of queries, B * HEADS, splits)."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # under a diagonal the last has most to do: it starts first
    line, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    batch, head = line // HEADS, line % HEADS
    table = line // GROUPS  # the key/value head, counted through the batch
    queries += batch * q_batch + head * STACK * q_head
    keys += batch * k_batch + head // GROUPS * k_head
    arrival += table * rows
    latest += table * tl.cdiv(rows, BLOCK_S)

    at = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = at < total * STACK
    asked = _query_tile(queries, at, total, q_head, q_row, q_column, STACK, DIM, BLOCK_D)
    # Beyond the last query a tile holds some that see all and whose sums are not stored: they need no mask.
    until = tl.load(sees + batch * total + (at if STACK == 1 else at % total), mask=inside, other=_FAR - 1)
    horizon = tl.min(until, 0)
    end = tl.minimum(rows, (split + 1) * part)
    if IN_ORDER:
        end = tl.minimum(end, rows - total + (block + 1) * BLOCK_Q)
    factor = scale * _LOG2_E if FOLDED else 1.0

    most = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    power = tl.zeros([BLOCK_Q], tl.float32)
    for first in range(split * part, end, BLOCK_S):
        slot = first + tl.arange(0, BLOCK_S)
        newest = tl.load(latest + first // BLOCK_S)
        key = _tile(keys, slot, rows, slot.to(tl.int64) * k_row, k_column, DIM, BLOCK_D)
        logits = _products(asked, key, scale, softcap, FOLDED)
        if bias is not None:
            logits += tl.load(bias + table * rows + slot, mask=slot < rows, other=0.0)[None, :]
        if newest > horizon:
            came = tl.load(arrival + slot, mask=slot < rows, other=_FAR)
            logits = tl.where(came[None, :] <= until[:, None], logits, float("-inf"))
        higher = tl.maximum(most, tl.max(logits, 1) * factor)
        level = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf - -inf would be NaN
        power = power * tl.exp2(most - level) + tl.sum(tl.exp2(logits * factor - level[:, None]), 1)
        most = higher

    if sinks is not None and split == 0:  # a logit that takes part and belongs to no row
        sink = tl.load(sinks + head * STACK + at // total, mask=inside, other=0.0)
        level = tl.maximum(most, sink)
        power = power * tl.exp2(most - level) + tl.exp2(sink - level)
        most = level
    sums = tl.where(most == float("-inf"), most, most + tl.log2(tl.where(power > 0, power, 1.0)))
    line += split * tl.num_programs(1).to(tl.int64)
    tl.store(out + line * total * STACK + at, sums, mask=inside)


@triton.jit
def _joined(sums, at, count, stride, splits, SPLITS: tl.constexpr):
    """[BLOCK]: one log-sum-exp of the parts of each query; +inf for one that sees nothing, so that it pays nothing."""
    if SPLITS == 1:
        whole = tl.load(sums + at, mask=at < count, other=float("inf"))
    else:
        part = tl.arange(0, SPLITS)
        inside = (part < splits)[:, None] & (at < count)[None, :]
        parts = tl.load(sums + part[:, None] * stride + at[None, :], mask=inside, other=float("-inf"))
        most = tl.max(parts, 0)
        level = tl.where(most == float("-inf"), 0.0, most)
        whole = most + tl.log2(tl.maximum(tl.sum(tl.exp2(parts - level[None, :]), 0), 1.0))
    return tl.where(whole == float("-inf"), float("inf"), whole)


@triton.jit
def column_sums(
    queries,  # [B, Hq, total, DIM]; Hq = HEADS * STACK
    keys,  # [B, HEADS / GROUPS, rows, DIM]
    sees,  # int32 [B, total], from `horizons`, as are the next two
    arrival,  # int32 [B, HEADS / GROUPS, rows]
    least,  # int32 [B, tiles of queries]; unused where STACK > 1
    bias,  # float32 [B, HEADS / GROUPS, rows], times log2(e), or None
    weights,  # float32 [B, total], or None
    sums,  # float32 [splits, B, Hq, total], from `log_sum_exp`; or natural logarithms of the attention itself
    out,  # float32 [B, HEADS, rows]; the mean over the heads of a stack
    q_batch,
    q_head,
    q_row,
    q_column,
    k_batch,
    k_head,
    k_row,
    k_column,
    total,
    rows,
    splits,
    scale,
    softcap,  # or None
    FOLDED: tl.constexpr,
    IN_ORDER: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    STACK: tl.constexpr,
    SPLITS: tl.constexpr,  # the next power of two
    NATURAL: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS); under a diagonal the first has most to do."""
    block, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = line // HEADS, line % HEADS
    table = line // GROUPS
    queries += batch * q_batch + head * STACK * q_head
    keys += batch * k_batch + head // GROUPS * k_head
    sums += line * total * STACK
    stride = tl.num_programs(1).to(tl.int64) * total * STACK
    least += batch * tl.cdiv(total, BLOCK_Q)

    slot = block * BLOCK_S + tl.arange(0, BLOCK_S)
    # Beyond the last row a tile holds some that all see and whose sums are not stored: they need no mask.
    came = tl.load(arrival + table * rows + slot, mask=slot < rows, other=-1)
    newest = tl.max(came, 0)
    key = _tile(keys, slot, rows, slot.to(tl.int64) * k_row, k_column, DIM, BLOCK_D)
    if bias is not None:
        lift = tl.load(bias + table * rows + slot, mask=slot < rows, other=0.0)
    start = 0
    if IN_ORDER:
        start = tl.maximum(block * BLOCK_S - (rows - total), 0) // BLOCK_Q * BLOCK_Q
    factor = scale * _LOG2_E if FOLDED else 1.0

    mass = tl.zeros([BLOCK_S], tl.float32)
    for first in range(start, total * STACK, BLOCK_Q):
        at = first + tl.arange(0, BLOCK_Q)
        inside = at < total * STACK
        asking = at if STACK == 1 else at % total
        horizon = tl.load(least + first // BLOCK_Q) if STACK == 1 else -1
        asked = _query_tile(queries, at, total, q_head, q_row, q_column, STACK, DIM, BLOCK_D)
        level = _joined(sums, at, total * STACK, stride, splits, SPLITS) * (_LOG2_E if NATURAL else 1.0)
        logits = _products(key, asked, scale, softcap, FOLDED)
        if bias is not None:
            logits += lift[:, None]
        if newest > horizon:
            until = tl.load(sees + batch * total + asking, mask=inside, other=-1)
            logits = tl.where(came[:, None] <= until[None, :], logits, float("-inf"))
            level = tl.where(until >= 0, level, float("inf"))  # an attention may have told NaN of a query on padding
        paid = tl.exp2(logits * factor - level[None, :])
        if weights is not None:
            real = tl.load(sees + batch * total + asking, mask=inside, other=-1) >= 0
            paid *= tl.load(weights + batch * total + asking, mask=real, other=0.0)[None, :]
        mass += tl.sum(paid, 1)
    tl.store(out + line * rows + slot, mass / STACK, mask=slot < rows)
