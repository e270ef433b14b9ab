"""Launches of `TritonBackend.attention_mass`: what each softmax divides by, unless it is known, and the column sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._step import Step
from ..._types import CacheView
from .kernels.mass import DEFAULT, LOG2_E, TILINGS, Tiles, Tiling, column_sums, horizons, log_sum_exp
from .launch import over, programs, tile_of, warps_for

__all__ = ["FEW", "column_mass"]

FEW = 64  # queries: for no more, the query heads of a key/value head share a tile
_TINY = torch.finfo(torch.float32).tiny
_MOST_SPLITS = 64


def column_mass(
    view: CacheView,
    step: Step,
    queries: Tensor,
    keys: Tensor,
    weights: Tensor | None,
    stack: int,
    tiling: Tiling | None,
) -> Tensor:
    """float32 [B, Hq / stack, S]."""
    batch, query_heads, total, dim = queries.shape
    tables, rows = keys.shape[1:3]
    heads, asking, device = query_heads // stack, total * stack, queries.device
    first, second = tiling or _tiling(dim, queries.dtype, asking)
    bias = sinks = None
    if step.count_bias:
        bias = view.columns["count"].data.float().clamp(min=_TINY).log2().contiguous()
    if step.sinks is not None:
        sinks = step.sinks.float() * LOG2_E
    if weights is not None:
        weights = weights.float().contiguous()

    def shared(tiles: Tiles) -> dict[str, Any]:
        block_q, block_s = min(tiles.queries, tile_of(asking)), min(tiles.rows, tile_of(rows))
        return {
            # A scale that is not positive would turn the largest product into the smallest logit.
            "FOLDED": bias is None and step.softcap is None and step.scale > 0,
            "IN_ORDER": step.whole_pass and total > 1 and step.query_reach is None and stack == 1,
            "HEADS": heads,
            "GROUPS": heads // tables,
            "STACK": stack,
            "DIM": dim,
            "BLOCK_Q": block_q,
            "BLOCK_S": block_s,
            "BLOCK_D": tile_of(dim),
            "num_warps": warps_for(tiles.warps, block_q, block_s),
            "num_stages": tiles.stages,
        }

    one, other = shared(first), shared(second)
    block_q, block_s = other["BLOCK_Q"], one["BLOCK_S"]  # of the tiles that the passes run over
    arrival = torch.empty(batch, tables, rows, dtype=torch.int32, device=device)
    latest = torch.empty(batch, tables, over(rows, block_s), dtype=torch.int32, device=device)
    sees = torch.empty(batch, total, dtype=torch.int32, device=device)
    least = torch.empty(batch, over(total, block_q), dtype=torch.int32, device=device)
    last = step.asked.sees
    horizons[max(latest.shape[2], least.shape[1]), batch * tables](
        *(view.positions, view.valid, last, step.query_valid, arrival, sees, latest, least),
        *(*view.positions.stride(), *view.valid.stride(), *last.stride(), *step.query_valid.stride()),
        *(total, rows),
        HEADS=tables,
        BLOCK_Q=block_q,
        BLOCK_S=block_s,
    )
    lie = (*queries.stride(), *keys.stride(), total, rows)
    if step.log_sums is None:
        blocks = over(asking, one["BLOCK_Q"])
        splits = min(over(programs(device), blocks * batch * heads), over(rows, block_s), _MOST_SPLITS)
        part = over(over(rows, block_s), splits) * block_s
        splits = over(rows, part)
        levels = torch.empty(splits, batch, heads, asking, dtype=torch.float32, device=device)
        log_sum_exp[blocks, batch * heads, splits](
            *(queries, keys, sees, arrival, latest, bias, sinks, levels, *lie, part, step.scale, step.softcap),
            **one,
        )
    else:
        levels, splits = step.log_sums.float().contiguous(), 1
    mass = torch.empty(batch, heads, rows, dtype=torch.float32, device=device)
    column_sums[over(rows, other["BLOCK_S"]), batch * heads](
        *(queries, keys, sees, arrival, least, bias, weights, levels, mass, *lie, splits, step.scale, step.softcap),
        **other,
        SPLITS=1 << (splits - 1).bit_length(),
        NATURAL=step.log_sums is not None,
    )
    return mass


def _tiling(dim: int, dtype: torch.dtype, asking: int) -> Tiling:
    """Wide heads fill a tile as well, and the matrix units take a float32 in parts, which are held beside it."""
    if dtype == torch.float32:
        own = 64 if dim <= 128 else 16
        return Tiling(Tiles(own, 32, 4, 2), Tiles(32, own, 4, 2))
    if dim > 128:
        return Tiling(Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2))
    return TILINGS["64x64, 4 warps" if asking <= FEW else DEFAULT]
