"""Compaction in torch: survivors are gathered, and what folds is added onto them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .._plan import Plan
from .._types import CacheView, Column

__all__ = ["Folding", "compacted", "pick"]

_FAR = torch.iinfo(torch.int64).max


def compacted(view: CacheView, plan: Plan, rows: int) -> CacheView:
    """See `TorchBackend.compact`."""
    order = torch.where(plan.keep, view.positions, _FAR).argsort(dim=-1)[..., :rows]
    kept = plan.keep.gather(-1, order)
    keys, values = pick(view.keys, order, kept), pick(view.values, order, kept)
    columns = {name: replace(c, data=pick(c.data, order, kept)) for name, c in view.columns.items()}
    if plan.into is not None and plan.weight is not None and plan.self_weight is not None:
        fold = Folding(view, plan, order, plan.into, plan.weight, plan.self_weight)
        if plan.merge_keys:
            keys = fold.vectors(view.keys, keys, plan.key_scale)
        values = fold.vectors(view.values, values, plan.value_scale)
        columns = {n: fold.column(view.columns[n], c) for n, c in columns.items()}
    return CacheView(
        keys=keys,
        values=values,
        positions=torch.where(kept, view.positions.gather(-1, order), -1),
        valid=kept,
        columns=columns,
        registers={**view.registers, **plan.registers},
        layer=view.layer,
        num_layers=view.num_layers,
    )


class Folding:
    """Adds folded rows onto the survivors of a compaction, in at least float32."""

    chunk = 4096  # rows folded at once: bounds the temporary copy

    def __init__(
        self, view: CacheView, plan: Plan, order: Tensor, into: Tensor, weight: Tensor, self_weight: Tensor
    ) -> None:
        self.kept_rows, self.order = order.shape[-1], order
        slot = torch.full_like(view.positions, self.kept_rows)  # where a kept row went; the spare slot otherwise
        places = torch.arange(self.kept_rows, device=order.device).expand_as(order)
        slot.scatter_(-1, order, torch.where(plan.keep.gather(-1, order), places, self.kept_rows))
        goes = into >= 0
        flat = into.clamp(min=0).flatten(2)
        self.target = torch.where(goes, slot.gather(-1, flat).reshape(into.shape), self.kept_rows)  # [B, H, S, M]
        self.weight = torch.where(goes, weight, 0.0)
        self.self_weight = torch.where(plan.keep.gather(-1, order), self_weight.gather(-1, order), 1.0)
        self.goes, self.targets = goes, goes.sum(-1, keepdim=True).clamp(min=1)
        self.touched = torch.zeros(*order.shape[:2], self.kept_rows + 1, dtype=torch.bool, device=order.device)
        self.touched.scatter_(-1, self.target.flatten(2), True)

    def vectors(self, data: Tensor, survivors: Tensor, scale: Tensor | None) -> Tensor:
        """``scale * (self_weight * survivor + sum of weight * row)``; where nothing arrives, bits stay as they are."""
        wide = torch.promote_types(data.dtype, torch.float32)
        out = survivors.new_zeros(*survivors.shape[:2], self.kept_rows + 1, survivors.shape[-1], dtype=wide)
        out[:, :, :-1] = survivors.to(wide) * self.self_weight[..., None]
        weight = self.weight.to(wide)
        for start in range(0, data.shape[2], self.chunk):
            rows = data[:, :, start : start + self.chunk].to(wide)
            for m in range(self.target.shape[-1]):
                index = self.target[:, :, start : start + self.chunk, m, None].expand_as(rows)
                out.scatter_add_(2, index, rows * weight[:, :, start : start + self.chunk, m, None])
        keep_bits = ~self.touched[..., :-1, None] & (self.self_weight == 1)[..., None]
        if scale is not None:
            own = scale.gather(-1, self.order).to(wide)[..., None]
            out[:, :, :-1] *= own
            keep_bits = keep_bits & (own == 1)
        return torch.where(keep_bits, survivors, out[:, :, :-1].to(data.dtype))

    def column(self, whole: Column, survivors: Column) -> Column:
        """Sums go with their rows, shared evenly among several targets."""
        if whole.on_merge == "keep":
            return survivors
        out = torch.nn.functional.pad(survivors.data, (0, 1)).clone()
        dtype = whole.data.dtype  # a share of a third in float32 would spoil a column in float64
        moved = whole.data[..., None] * (self.goes.to(dtype) / self.targets).to(dtype)
        out.scatter_add_(-1, self.target.flatten(2), moved.flatten(2))
        return replace(survivors, data=out[..., :-1])


def pick(data: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    """Rows of [B, H, S] or [B, H, S, D] in this order, zeros where a slot stays empty; on the device of the data."""
    order, kept = order.to(data.device), kept.to(data.device)
    if data.ndim == 3:
        return data.gather(-1, order).masked_fill_(~kept, 0)
    picked = data.gather(2, order[..., None].expand(-1, -1, -1, data.shape[-1]))
    return picked.masked_fill_(~kept[..., None], 0)
