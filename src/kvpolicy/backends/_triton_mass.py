"""The kernels of `TritonBackend.attention_mass`: each query's log-sum-exp, then each row's share of every query.

The attention that row ``j`` receives is ``mass_j = sum_i exp(s_ij - lse_i)`` over the queries ``i`` that see it. The
first kernel's programs own queries and pass over the rows, with the running maximum of FlashAttention (arXiv
2205.14135, algorithm 1) but no output; those of the second own rows and pass over the queries, so that every sum is
formed by one program, in one order. Logits are formed twice and never stored.

Both work in powers of two, which is what the hardware exponentiates. A row is seen by a query if ``arrival <= sees``;
`FAR` and -1 stand for rows and queries that do not count. Tiles may read anything where these hide it: what is hidden
is selected away, not multiplied by zero, so that not even NaN comes through.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["FAR", "INTERPRETED", "LOG2_E", "column_sums", "log_sum_exp"]

# Triton reads the variable TRITON_INTERPRET where a kernel is defined, not where it is launched.
INTERPRETED: bool = triton.knobs.runtime.interpret

FAR = 2**31 - 1
LOG2_E = 1.4426950408889634

_FAR = tl.constexpr(FAR)
_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def _tile(matrix, first, count, row, column, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D]: rows ``first`` and on of a matrix [count, DIM] with these strides, zeros outside of it."""
    at, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    origin = matrix + tl.cast(first, tl.int64) * row  # a long prompt's offsets do not fit in 32 bits
    inside = (at < count - first)[:, None] & (d < DIM)[None, :]
    return tl.load(origin + at[:, None] * row + d[None, :] * column, mask=inside, other=0.0)


@triton.jit
def _logits(one, other, scale, softcap):
    """[M, N], times log2(e), of tiles [M, D] and [N, D]."""
    # For float32 only. The default, tf32, is off by 1e-3; "ieee" leaves the matrix units and spills its registers.
    logits = tl.dot(one, tl.trans(other), input_precision="tf32x3")
    if softcap is None:
        logits *= scale * _LOG2_E
    else:
        # tanh(x) = 1 - 2 / (exp(2x) + 1); from 2**64 on that is 1, and must not overflow.
        power = tl.exp2(tl.minimum(logits * (scale / softcap * 2.0 * _LOG2_E), 64.0))
        logits = (1.0 - 2.0 / (power + 1.0)) * (softcap * _LOG2_E)
    return logits


@triton.jit
def log_sum_exp(
    queries,  # [B, HEADS, total, DIM]
    keys,  # [B, HEADS / GROUPS, rows, DIM]
    sees,  # int32 [B, total], -1 where a query does not count
    arrival,  # int32 [B, HEADS / GROUPS, rows], FAR where a row is invalid
    bias,  # float32 [B, HEADS / GROUPS, rows], times log2(e), or None
    sinks,  # float32 [HEADS], times log2(e), or None
    out,  # float32 [B, HEADS, total]: log2 of the sum; +inf for a query that sees nothing, so that it pays nothing
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
    scale,
    softcap,  # or None
    IN_ORDER: tl.constexpr,  # the queries' own rows end the table in order: nothing above the diagonal is seen
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Programs (blocks of queries, B * HEADS)."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # under a diagonal the last has most to do: it starts first
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    table = tl.program_id(1) // GROUPS  # the key/value head, counted through the batch
    queries += tl.cast(batch, tl.int64) * q_batch + tl.cast(head, tl.int64) * q_head
    keys += tl.cast(batch, tl.int64) * k_batch + tl.cast(head // GROUPS, tl.int64) * k_head
    arrival += tl.cast(table, tl.int64) * rows

    asking = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    asked = _tile(queries, block * BLOCK_Q, total, q_row, q_column, DIM, BLOCK_Q, BLOCK_D)
    until = tl.load(sees + batch * total + asking, mask=asking < total, other=-1)
    end = rows
    if IN_ORDER:
        end = tl.minimum(rows, rows - total + (block + 1) * BLOCK_Q)

    most = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    power = tl.zeros([BLOCK_Q], tl.float32)
    for first in range(0, end, BLOCK_S):
        slot = first + tl.arange(0, BLOCK_S)
        came = tl.load(arrival + slot, mask=slot < rows, other=_FAR)
        key = _tile(keys, first, rows, k_row, k_column, DIM, BLOCK_S, BLOCK_D)
        logits = _logits(asked, key, scale, softcap)
        if bias is not None:
            logits += tl.load(bias + tl.cast(table, tl.int64) * rows + slot, mask=slot < rows, other=0.0)[None, :]
        logits = tl.where(came[None, :] <= until[:, None], logits, float("-inf"))
        higher = tl.maximum(most, tl.max(logits, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf - -inf would be NaN
        power = power * tl.exp2(most - level) + tl.sum(tl.exp2(logits - level[:, None]), 1)
        most = higher

    blind = most == float("-inf")
    if sinks is not None:  # a logit that takes part and belongs to no row
        sink = tl.load(sinks + head)
        level = tl.maximum(tl.where(blind, 0.0, most), sink)
        power = power * tl.exp2(most - level) + tl.exp2(sink - level)
        most = level
    sums = tl.where(blind, float("inf"), most + tl.log2(tl.where(blind, 1.0, power)))
    tl.store(out + tl.cast(tl.program_id(1), tl.int64) * total + asking, sums, mask=asking < total)


@triton.jit
def column_sums(
    queries,  # [B, HEADS, total, DIM]
    keys,  # [B, HEADS / GROUPS, rows, DIM]
    sees,  # int32 [B, total], -1 where a query does not count
    arrival,  # int32 [B, HEADS / GROUPS, rows], FAR where a row is invalid
    bias,  # float32 [B, HEADS / GROUPS, rows], times log2(e), or None
    weights,  # float32 [B, total], or None
    sums,  # float32 [B, HEADS, total], from `log_sum_exp`
    out,  # float32 [B, HEADS, rows]
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
    scale,
    softcap,  # or None
    IN_ORDER: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Programs (blocks of rows, B * HEADS); under a diagonal the first has most to do."""
    block = tl.program_id(0)
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    table = tl.program_id(1) // GROUPS
    queries += tl.cast(batch, tl.int64) * q_batch + tl.cast(head, tl.int64) * q_head
    keys += tl.cast(batch, tl.int64) * k_batch + tl.cast(head // GROUPS, tl.int64) * k_head
    sums += tl.cast(tl.program_id(1), tl.int64) * total

    slot = block * BLOCK_S + tl.arange(0, BLOCK_S)
    came = tl.load(arrival + tl.cast(table, tl.int64) * rows + slot, mask=slot < rows, other=_FAR)
    key = _tile(keys, block * BLOCK_S, rows, k_row, k_column, DIM, BLOCK_S, BLOCK_D)
    start = 0
    if IN_ORDER:
        start = tl.maximum(block * BLOCK_S - (rows - total), 0) // BLOCK_Q * BLOCK_Q

    mass = tl.zeros([BLOCK_S], tl.float32)
    for first in range(start, total, BLOCK_Q):
        asking = first + tl.arange(0, BLOCK_Q)
        until = tl.load(sees + batch * total + asking, mask=asking < total, other=-1)
        least = tl.load(sums + asking, mask=asking < total, other=float("inf"))
        asked = _tile(queries, first, total, q_row, q_column, DIM, BLOCK_Q, BLOCK_D)
        logits = _logits(key, asked, scale, softcap)
        if bias is not None:
            logits += tl.load(bias + tl.cast(table, tl.int64) * rows + slot, mask=slot < rows, other=0.0)[:, None]
        logits = tl.where(came[:, None] <= until[None, :], logits, float("-inf"))
        paid = tl.exp2(logits - least[None, :])
        if weights is not None:
            often = tl.load(weights + batch * total + asking, mask=until >= 0, other=0.0)
            paid *= often[None, :]
        mass += tl.sum(paid, 1)
    tl.store(out + tl.cast(tl.program_id(1), tl.int64) * rows + slot, mass, mask=slot < rows)
