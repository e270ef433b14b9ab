"""Launches of `TritonBackend.compact`: lists, the fold of keys and values, and the columns."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..._plan import Plan
from ..._types import CacheView
from .kernels.columns import fold_columns
from .kernels.fold import Folding, fold
from .kernels.lists import rank, survey
from .launch import over, tile_of

__all__ = ["Listed", "compacted", "listed"]

_FULL = 8192  # programs of one warp: enough for a device, twice over
# Survivors of a program that folds scalars, chunks that it looks into at once, and its warps.
_COLUMN_BLOCK, _COLUMN_CHUNKS, _COLUMN_WARPS = 16, 1, 1


class Listed(NamedTuple):
    """Marked rows of each head; see `kernels.lists`."""

    order: Tensor
    total: Tensor
    positions: Tensor | None
    valid: Tensor | None
    following: Tensor | None
    ranges: tuple[Tensor | None, ...]  # least, most, lowest and highest
    takers: Tensor | None
    key_sums: Tensor | None
    value_sums: Tensor | None


def compacted(view: CacheView, plan: Plan, rows: int, folding: Folding) -> CacheView:
    """See `TritonBackend.compact`, of tensors that the kernels serve."""
    batch, heads, total = view.shape
    into, weight = (None if data is None else data.contiguous() for data in (plan.into, plan.weight))
    stays = listed(view, plan.keep, rows, folding, plan=replace(plan, into=into, weight=weight))
    chunks = over(total, folding.chunk)
    keys, values = (
        torch.empty(batch, heads, rows, data.shape[-1], dtype=data.dtype, device=data.device)
        for data in (view.keys, view.values)
    )
    said = (plan.self_weight, plan.key_scale, plan.value_scale)
    groups = _groups(batch * heads * rows, folding)
    fold[over(rows, folding.survivors * groups), batch * heads](
        *(view.keys, view.values, stays.order, into, weight, stays.following),
        *(None if data is None else data.contiguous() for data in said),
        *(*stays.ranges, stays.takers, stays.key_sums, stays.value_sums, keys, values),
        *(*view.keys.stride(), *view.values.stride(), total, rows, chunks),
        **_sizes(view, into, folding, few=1),
        MERGE_KEYS=plan.merge_keys,
        BLOCK=folding.survivors,
        GROUPS=groups,
        WIDE=_wide(chunks),
        num_warps=folding.warps,
        maxnreg=_registers(view, folding),
    )
    whole = tuple(column.data.contiguous() for column in view.columns.values())
    data = tuple(torch.empty(batch, heads, rows, dtype=each.dtype, device=each.device) for each in whole)
    if data:
        fold_columns[over(rows, _COLUMN_BLOCK), batch * heads, len(data)](
            *(whole, stays.order, into, *stays.ranges, data, total, rows, chunks),
            SUMMED=tuple(into is not None and column.on_merge == "sum" for column in view.columns.values()),
            TARGETS=1 if into is None else into.shape[-1],
            BLOCK=_COLUMN_BLOCK,
            CHUNK=folding.chunk,
            MANY=_COLUMN_CHUNKS,
            WIDE=_wide(chunks),
            num_warps=_COLUMN_WARPS,
        )
    columns = {n: replace(column, data=out) for (n, column), out in zip(view.columns.items(), data, strict=True)}
    return CacheView(
        keys=keys,
        values=values,
        positions=stays.positions,
        valid=stays.valid,
        columns=columns,
        registers={**view.registers, **plan.registers},
        layer=view.layer,
        num_layers=view.num_layers,
    )


def _groups(survivors: int, folding: Folding) -> int:
    """How many groups of survivors a program of `fold` takes, so that still every multiprocessor has enough."""
    programs = over(survivors, folding.survivors) // _FULL
    return min(folding.groups, 1 << max(0, programs.bit_length() - 1))


def _registers(view: CacheView, folding: Folding) -> int | None:
    """Of a thread of `fold`: few, where a row takes few, so that more programs wait for memory side by side."""
    narrow = max(data.shape[-1] * data.element_size() for data in (view.keys, view.values)) <= 256
    return folding.registers if narrow else None


def _sizes(view: CacheView, into: Tensor | None, folding: Folding, *, few: int = 8) -> dict[str, int]:
    """What the compiler is to know of a table, and of what folds in it."""
    chunk, crowd = folding.chunk, folding.crowd
    targets = 1 if into is None else into.shape[-1]
    dims = view.keys.shape[-1], view.values.shape[-1]
    return {
        "HEADS": view.shape[1],
        "TARGETS": targets,
        "DIM": dims[0],
        "VALUE_DIM": dims[1],
        "BLOCK_D": tile_of(dims[0]),
        "BLOCK_V": tile_of(dims[1]),
        "CHUNK": chunk,
        "FEW": min(chunk, few),
        "CROWD": crowd,
        "CROWDS": targets * (chunk // crowd),
    }


def listed(view: CacheView, mask: Tensor, room: int, folding: Folding, *, plan: Plan | None = None) -> Listed:
    """The marked rows of each head in order of arrival; for a ``plan``, with arrivals, what is taken, and crowds.

    The plan's ``into`` and ``weight`` are contiguous.
    """
    batch, heads, rows = view.shape
    chunk = folding.chunk
    grid = (chunks := over(rows, chunk), batch * heads)
    into = None if plan is None else plan.into
    sizes = _sizes(view, into, folding)

    def made(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(batch, heads, *shape, dtype=dtype, device=mask.device)

    marked, order, total = made(chunks), made(room), made(1)
    earliest, latest = (made(chunks, dtype=torch.int64) for _ in range(2))
    positions = valid = weight = keys = values = following = takers = key_sums = value_sums = None
    ranges: tuple[Tensor | None, ...] = (None, None, None, None)
    if plan is not None:
        positions, valid = made(room, dtype=torch.int64), made(room, dtype=torch.bool)
    if plan is not None and into is not None:
        weight, keys, values = plan.weight, view.keys if plan.merge_keys else None, view.values
        ranges = tuple(made(chunks) for _ in ranges)
        following = made(*into.shape[2:])
        takers = made(sizes["CROWDS"], chunks)
        key_sums, value_sums = (
            None if data is None else made(sizes["CROWDS"], chunks, data.shape[-1], dtype=torch.float32)
            for data in (keys, values)
        )
    lie = (*mask.stride(), *view.positions.stride())
    survey[grid](
        *(mask, view.positions, into, weight, keys, values, marked, earliest, latest, following),
        *(*ranges, takers, key_sums, value_sums, *lie, *view.keys.stride(), *view.values.stride(), rows),
        **sizes,
        num_warps=folding.lists,
    )
    rank[grid](
        *(mask, view.positions, marked, earliest, latest, order, positions, valid, total, *lie, rows, room),
        HEADS=heads,
        CHUNK=chunk,
        FEW=min(chunk, 4),
        WIDE=_wide(chunks),
        num_warps=folding.lists,
    )
    return Listed(order, total, positions, valid, following, ranges, takers, key_sums, value_sums)


def _wide(chunks: int) -> int:
    """How many chunks are looked at together."""
    return min(256, tile_of(chunks))
