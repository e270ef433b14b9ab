"""The torch backend: vectorised, chunked over queries, on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._ends import between
from .._protocols import Backend
from .._types import CacheView, Column, HeadCounts, KeepMask, Plan, Quota, Scores, Step
from ._torch_steady import SteadyTable
from ._torch_store import TorchStore

__all__ = ["TorchBackend"]

_FAR = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class TorchBackend(Backend):
    """PyTorch on the device of the tensors.

    Args:
        chunk_elements: logits held at once by `attention_mass`; its extra memory is four bytes times this, whatever
            the prompt's length (at least one query's logits).
    """

    chunk_elements: int = 1 << 22

    @property
    def name(self) -> str:
        """``torch``."""
        return "torch"

    def store(self, layer: int, num_layers: int, /, *, on_host: bool = False) -> TorchStore:
        """Preallocated rows that are written in place."""
        return TorchStore(layer, num_layers, compact=self.compact, on_host=on_host)

    def steady_table(self, view: CacheView, room: HeadCounts, position: int, /) -> SteadyTable:
        """Rows in tensors that stay where they are."""
        return SteadyTable(view, room, position)

    def in_place(self, data: np.ndarray[Any, Any], /, *, device: Any) -> Tensor:
        """A copy on a device, which a recorded pass may write to."""
        made = self.from_host(data, device=device)
        torch._dynamo.mark_static_address(made)
        return made

    def host(self, data: Tensor, /) -> np.ndarray[Any, Any]:
        """A numpy copy, bfloat16 as float32; waits for the device."""
        data = data.detach().cpu()
        return (data.float() if data.dtype == torch.bfloat16 else data).numpy()

    def from_host(self, data: np.ndarray[Any, Any], /, *, dtype: str | None = None, device: Any = None) -> Tensor:
        """A copy on a device, the CPU where none is named."""
        made = torch.tensor(np.ascontiguousarray(data), device=device)
        return made if dtype is None else made.to(getattr(torch, dtype))

    def attention_mass(
        self,
        view: CacheView,
        step: Step,
        /,
        *,
        weights: Tensor | None = None,
        group: Literal["mean", "max"] = "mean",
        above: float | None = None,
    ) -> Scores:
        """Exact column sums by a second pass over the logits, a chunk of queries at a time.

        Rows of a whole pass stand at the end of the table in order, so a chunk only meets the rows that its last query
        can see; other queries, and a single one, may see rows anywhere.
        """
        if step.shares is not None and group == "mean" and above is None:
            told: Tensor = step.shares  # by the attention itself
            return told if weights is None else told * weights[:, None].to(told.dtype)
        batch, heads, rows = view.shape
        queries, sees, counted = step.queries, step.asked.sees, step.query_valid
        total = queries.shape[2]
        in_order = step.whole_pass and total > 1 and step.query_reach is None
        dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
        keys = view.keys.to(dtype).transpose(-1, -2)
        queries = queries.reshape(batch, heads, queries.shape[1] // heads, total, queries.shape[-1])
        bias = _log_count(view, dtype) if step.count_bias else None
        sinks = None if step.sinks is None else step.sinks.to(dtype).reshape(1, heads, -1, 1, 1)
        room = torch.empty if total == 1 else torch.zeros  # what a single query pays needs no adding up
        mass = room(batch, heads, queries.shape[2], rows, dtype=dtype, device=queries.device)
        chunk = max(1, self.chunk_elements // max(1, batch * heads * queries.shape[2] * rows))
        for start in range(0, total, chunk):
            stop = min(start + chunk, total)
            seen = rows - total + stop if in_order else rows
            asked = queries[..., start:stop, :].to(dtype) * step.scale
            # Query heads that share keys are laid side by side: broadcasting the keys over them would copy the keys.
            logits = (asked.flatten(2, 3) @ keys[..., :seen]).unflatten(2, asked.shape[2:4])
            if step.softcap is not None:
                logits.div_(step.softcap).tanh_().mul_(step.softcap)
            if bias is not None:
                logits += bias[:, :, None, None, :seen]
            hidden = _hidden(view, sees[:, start:stop], seen).unsqueeze(2)
            logits.masked_fill_(hidden, -torch.inf)
            shares = torch.softmax(logits, dim=-1)
            if sinks is not None:  # the rows keep exp(lse) / (exp(lse) + exp(sink)) of the whole
                shares *= torch.sigmoid(logits.logsumexp(-1, keepdim=True) - sinks)
            if above is not None:
                shares = (shares >= above * shares.amax(-1, keepdim=True)).to(dtype).masked_fill_(hidden, 0.0)
            # A query that sees nothing has NaN shares; it counts for nothing, like one on a padding token.
            silent = hidden.all(-1, keepdim=True) | ~counted[:, None, None, start:stop, None]
            shares.masked_fill_(silent, 0.0)
            if weights is not None:
                shares *= weights[:, None, None, start:stop, None].to(dtype)
            if total == 1:
                mass = shares.squeeze(-2)
            else:
                mass[..., :seen] += shares.sum(-2)
        return mass.mean(2) if group == "mean" else mass.amax(2)

    def most_similar(self, view: CacheView, rows: KeepMask, anchors: KeepMask, /) -> tuple[Tensor, Tensor]:
        """Unit keys of the marked rows, a chunk at a time, against those of the anchors."""
        rows, anchors = rows & view.valid, anchors & view.valid
        dtype = torch.float64 if view.keys.dtype == torch.float64 else torch.float32
        into = torch.full_like(view.positions, -1)
        similarity = torch.zeros(view.shape, dtype=dtype, device=view.positions.device)
        most_rows, most_anchors = (int(mask.sum(-1).max()) for mask in (rows, anchors))
        if not (most_rows and most_anchors):
            return into, similarity
        there, is_anchor = _first(anchors, view.positions, most_anchors)
        here, is_row = _first(rows, view.positions, most_rows)
        targets = _unit(_pick(view.keys, there, is_anchor).to(dtype)).transpose(-1, -2)
        chunk = max(1, self.chunk_elements // max(1, there.numel()))
        for start in range(0, most_rows, chunk):
            place = here[..., start : start + chunk]
            asked = is_row[..., start : start + chunk]
            cosine = _unit(_pick(view.keys, place, asked).to(dtype)) @ targets
            cosine.masked_fill_(~is_anchor[..., None, :], -torch.inf)
            best = cosine.argmax(-1)
            found = asked & is_anchor.any(-1, keepdim=True)
            chosen = torch.where(found, there.gather(-1, best), -1)
            value = torch.where(found, cosine.gather(-1, best[..., None])[..., 0], 0.0)
            into.scatter_(-1, place, chosen)
            similarity.scatter_(-1, place, value)
        return into, similarity

    def top_k(
        self,
        scores: Scores,
        quota: Quota,
        view: CacheView,
        /,
        *,
        surplus: int | None = None,
        first: int = 0,
        last: Any = 0,
    ) -> KeepMask:
        """Sort by (score, arrival) and keep the first ``quota``; invalid rows sort last.

        Where ``surplus`` says that a head has one row too many at most, that one is looked for and nothing is sorted.
        """
        if surplus == 0:
            return view.valid.clone()
        quota = torch.as_tensor(quota, device=scores.device)
        if not first and isinstance(last, int) and not last:
            return _best(scores, quota, view, surplus)
        others = between(view, self.arrival_rank(view), first, last)
        protected = view.valid & ~others
        # Protected rows take no more from the quota than from what is held: the others have no larger surplus.
        kept: Tensor = protected | _best(scores, quota - protected.sum(-1), view.only(others), surplus)
        return kept

    def arrival_rank(self, view: CacheView, /) -> Tensor:
        """Ranks by one sort of the positions."""
        known: Tensor | None = view.known_rank
        if known is not None:
            return known
        rank = _inverse(torch.where(view.valid, view.positions, _FAR).argsort(dim=-1))
        rank = torch.where(view.valid, rank, view.shape[2])
        vars(view)["_counted"] = rank  # asked again, this very view knows, and nothing that is made of it
        return rank

    def nearest_position(self, view: CacheView, keep: KeepMask, /) -> Tensor:
        """Binary search among the kept positions."""
        kept = keep & view.valid
        places, rows = torch.where(kept, view.positions, _FAR).sort(dim=-1)
        count = kept.sum(-1, keepdim=True)
        after = torch.searchsorted(places, view.positions.contiguous())
        before = (after - 1).clamp(min=0)
        after = torch.minimum(after, (count - 1).clamp(min=0))
        behind = (view.positions - places.gather(-1, before)).abs()
        ahead = (places.gather(-1, after) - view.positions).abs()
        nearest = rows.gather(-1, torch.where(ahead < behind, after, before))
        return torch.where(view.valid & (count > 0), nearest, -1)

    def segment_sum(self, data: Tensor, index: Tensor, /) -> Tensor:
        """Scatter-add with a spare slot for what is left out."""
        batch, heads, rows = index.shape[:3]
        out = torch.zeros(batch, heads, rows + 1, dtype=data.dtype, device=data.device)
        target = torch.where(index >= 0, index, rows).reshape(batch, heads, -1)
        return out.scatter_add_(-1, target, data.reshape(batch, heads, -1))[..., :rows]

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        """Gather the survivors in order of arrival, then add what folds into them."""
        order = torch.where(plan.keep, view.positions, _FAR).argsort(dim=-1)[..., :rows]
        kept = plan.keep.gather(-1, order)
        keys, values = _pick(view.keys, order, kept), _pick(view.values, order, kept)
        columns = {name: replace(c, data=_pick(c.data, order, kept)) for name, c in view.columns.items()}
        if plan.into is not None and plan.weight is not None and plan.self_weight is not None:
            fold = _Folding(view, plan, order, plan.into, plan.weight, plan.self_weight)
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


class _Folding:
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


def _best(scores: Tensor, quota: Tensor, view: CacheView, surplus: int | None) -> Tensor:
    """bool [B, H, S]: the ``quota`` best valid rows."""
    if surplus == 1:
        return _all_but_the_worst(scores, quota, view)
    arrival = torch.where(view.valid, view.positions, -1)
    order = arrival.argsort(dim=-1, descending=True, stable=True)
    valued = torch.where(view.valid, scores, -torch.inf).gather(-1, order)
    order = order.gather(-1, valued.argsort(dim=-1, descending=True, stable=True))
    kept: Tensor = (_inverse(order) < quota[..., None]) & view.valid
    return kept


def _all_but_the_worst(scores: Tensor, quota: Tensor, view: CacheView) -> Tensor:
    """bool [B, H, S]: the valid rows without the worst, the earliest of several, of each head above its quota."""
    lowest = torch.where(view.valid, scores, torch.inf).amin(-1, keepdim=True)
    # Not by equality, so that a head whose scores are NaN, if nobody checks them, still gives up a row that it has.
    arrival = torch.where(view.valid & ~(scores > lowest), view.positions, _FAR)
    over = view.valid.sum(-1, keepdim=True) > quota[..., None]
    # Positions differ, so this is one row: compared, not scattered to, which a compiler makes part of one kernel.
    worst = torch.where(over, arrival.amin(-1, keepdim=True), -1)
    kept: Tensor = view.valid & (view.positions != worst)
    return kept


def _hidden(view: CacheView, sees: Tensor, seen: int) -> Tensor:
    """bool [B, H, Q, seen]: rows that a query, which sees up to this arrival index, does not see."""
    later = view.positions[..., None, :seen] > sees[:, None, :, None]
    hidden: Tensor = later | ~view.valid[..., None, :seen]
    return hidden


def _log_count(view: CacheView, dtype: torch.dtype) -> Tensor:
    count: Tensor = view.columns["count"].data
    return count.to(dtype).clamp(min=torch.finfo(dtype).tiny).log()


def _inverse(order: Tensor) -> Tensor:
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _first(mask: Tensor, positions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` marked rows of each head in order of arrival, and which of these places are marked at all."""
    order = torch.where(mask, positions, _FAR).argsort(dim=-1, stable=True)[..., :count]
    return order, mask.gather(-1, order)


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1.0)


def _pick(data: Tensor, order: Tensor, kept: Tensor) -> Tensor:
    """Rows of [B, H, S] or [B, H, S, D] in this order, zeros where a slot stays empty; on the device of the data."""
    order, kept = order.to(data.device), kept.to(data.device)
    if data.ndim == 3:
        return data.gather(-1, order).masked_fill_(~kept, 0)
    picked = data.gather(2, order[..., None].expand(-1, -1, -1, data.shape[-1]))
    return picked.masked_fill_(~kept[..., None], 0)
