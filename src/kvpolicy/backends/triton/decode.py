"""Attention of one query a batch row to a table, and the share of it that each row received: for CUDA devices.

A head may be a window of a larger storage, or begin anywhere in a flat one, as `_torch_vectors.Ragged` keeps it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..._types import CacheView
from .._torch_vectors import Window
from .kernels.decode import attend, bring_together
from .kernels.mass import INTERPRETED
from .launch import DTYPES, over, tile_of

__all__ = ["decode_attention", "storage_of"]

# What a launch goes by, besides shapes.
_ENOUGH = 2 * 132  # programs, two for each multiprocessor of an H200: where there are fewer, heads are split
_WORTH = 512  # rows that a part of a head has at least: for fewer, a second launch does not pay
_MOST_PARTS = 64  # of a head, as one program brings them together
_ASKING = 16  # query heads that a program holds, if it holds several: what the matrix units take
_TILE_BYTES = 1 << 13  # of keys, and of values, that a program reads at once
_RESCALED = 512  # rows whose logits become shares at once; half of that where a program holds several query heads


def decode_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    visible: Tensor | None = None,
    base: Tensor | None = None,
    length: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    want_shares: bool = False,
    group: Literal["mean", "max"] = "mean",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of one query a batch row, and what share of it each row of the table receives.

    The same bits every time. Nothing waits for the device and the launches follow from shapes alone, so a CUDA graph
    can hold them. Under `torch.compile` it is one operator. It has no gradient.

    Args:
        queries: [B, Hq, 1, D] in float16, bfloat16 or float32; H divides Hq.
        keys: [B, H, S, D], in the dtype of the queries; or, with ``base``, flat [R, D]. Any strides.
        values: [B, H, S, Dv], or flat [R, Dv], likewise.
        visible: bool [B, H, S], which slots hold a row that is seen; hidden ones may hold anything. None: all do.
        base: int64 [B, H], the flat row at which each head begins; needs ``visible``, which says how wide the table is.
        length: int32 or int64 [B, H], the slots of each head that exist: none beyond is read or seen. None: S.
        bias: float32 [B, H, S], added to the logits, after the cap.
        scale: of the products of queries and keys.
        softcap: logits become ``softcap * tanh(logit / softcap)``; None: they stay.
        sinks: floating [Hq], for each query head a logit that takes its share and belongs to no row; None: no sinks.
        want_shares: whether to return the shares.
        group: a row's share is the mean over the query heads that share its key/value head, or the largest of theirs.

    Returns:
        The output [B, Hq, 1, Dv] in the dtype of the values; and the shares, float32 [B, H, S], zero where a slot is
        not seen, or None. A query that sees nothing gives zeros.

    Raises:
        ValueError: for dtypes that differ or are not served, several queries, and flat rows without ``visible``.
    """
    if not (queries.dtype == keys.dtype == values.dtype and queries.dtype in DTYPES):
        raise ValueError(
            f"decode_attention takes queries, keys and values in one of float16, bfloat16 and float32; these are in "
            f"{queries.dtype}, {keys.dtype} and {values.dtype}."
        )
    if queries.shape[2] != 1:
        raise ValueError(f"decode_attention takes one query a batch row; these are {queries.shape[2]}.")
    if base is not None and visible is None:
        raise ValueError("decode_attention(base=...) needs visible= too: flat rows do not say how wide the table is.")
    # What is traced must be an operator; elsewhere its dispatch would only cost the host time.
    attending = _operator if torch.compiler.is_compiling() else _attend
    given = (queries, keys, values, visible, base, length, bias, float(scale), softcap, sinks)
    out, shares = attending(*given, want_shares, group == "mean")
    return out, shares if want_shares else None


def storage_of(view: CacheView) -> dict[str, Any]:
    """The arguments of `decode_attention` that say where the rows of a view lie: ragged heads are not gathered."""
    keys, values = view.keys, view.values
    if not (isinstance(keys, Window) and isinstance(values, Window)):
        return {"keys": keys, "values": values}
    heads = keys.ragged
    return {"keys": heads.data, "values": values.ragged.data, "base": heads.base, "length": heads.length}


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    base: Tensor | None,
    length: Tensor | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    want_shares: bool,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    """Output and shares; the shares are empty where they are not wanted."""
    out, shares = _results(queries, keys, values, visible, want_shares)
    batch, heads, rows = (keys if visible is None else visible).shape[:3]
    tables, asking = batch * heads, queries.shape[1]
    if 0 in (tables, rows):
        return out.zero_(), shares
    made = out
    if INTERPRETED and made.dtype == torch.bfloat16:  # the interpreter computes in numpy, which has no bfloat16
        queries, keys, values, made = queries.float(), keys.float(), values.float(), out.float()

    groups, dim, value_dim = asking // heads, keys.shape[-1], values.shape[-1]
    block_g = 1 if groups == 1 else _ASKING
    blocks = over(groups, block_g)
    parts = max(1, min(_MOST_PARTS, rows // _WORTH, over(_ENOUGH, tables * blocks)))
    parts = 1 << parts.bit_length() - 1  # each number is a kernel of its own: a table that grows must not meet many
    alone = parts == blocks == 1
    block_v, rescaled = tile_of(value_dim), min(_RESCALED if groups == 1 else _RESCALED // 2, tile_of(rows))

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=queries.device)

    # A single query head's logits lie where its shares will.
    logits = scratch(batch, asking, rows) if want_shares and groups > 1 else shares
    sums, partial = (None, None) if alone else (scratch(2, parts, batch * asking), scratch(parts, *out.shape))
    shared: dict[str, Any] = {
        **{"HEADS": heads, "GROUPS": groups, "VALUE_DIM": value_dim, "PARTS": parts},
        **{"SHARES": want_shares, "MEAN": mean, "BLOCK_V": block_v, "RESCALED": rescaled},
    }
    flat = () if base is None else (0, 0)
    strides = (queries.stride(0), queries.stride(1), queries.stride(3), *flat, *keys.stride(), *flat, *values.stride())
    for scalars in (visible, bias):
        strides += (0, 0, 0) if scalars is None else scalars.stride()
    base, length = (None if data is None else data.contiguous() for data in (base, length))
    with torch.cuda.device(queries.get_device()):  # triton launches on the current one; -1 changes nothing
        attend[tables, parts, blocks](
            *(queries, keys, values, visible, base, length, bias, sinks, made if alone else partial),
            *(sums, logits, shares, *strides, tables, rows, scale, softcap),
            **shared,
            **_tiles(dim, block_v, rows, block_g, keys.element_size()),
            DIM=dim,
            ALONE=alone,
        )
        if not alone:
            most = max(groups, -(-rows // rescaled) if want_shares else 0)
            bring_together[tables, most](
                *(partial, sums, length, sinks, logits, made, shares, tables, rows),
                **shared,
                num_warps=4 if parts * block_v <= 1 << 13 else 8,
            )
    return made.to(out.dtype), shares


def _results(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, want_shares: bool
) -> tuple[Tensor, Tensor]:
    batch, heads, rows = (keys if visible is None else visible).shape[:3]
    out = values.new_empty(batch, queries.shape[1], 1, values.shape[-1])
    return out, values.new_empty(batch, heads, rows if want_shares else 0, dtype=torch.float32)


_operator = torch.library.custom_op("kvpolicy::decode_attention", _attend, mutates_args=())


@_operator.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, *given: Any) -> tuple[Tensor, Tensor]:
    return _results(queries, keys, values, visible, want_shares=given[-2])


def _tiles(dim: int, block_v: int, rows: int, block_g: int, itemsize: int) -> dict[str, int]:
    """What one program holds at once, and the warps that it has for it."""
    row_bytes = max(tile_of(dim), block_v) * itemsize
    block_s = (_TILE_BYTES if block_g == 1 else 2 * _TILE_BYTES) // row_bytes
    return {
        "BLOCK_G": block_g,
        "BLOCK_S": min(max(16, block_s), 128, tile_of(rows)),
        "BLOCK_D": tile_of(dim),
        "num_warps": 4 if row_bytes < 1024 else 8,
        "num_stages": 3 if row_bytes <= 1024 else 1,  # tiles on their way to the matrix units; wide ones fit but once
    }
