"""The torch backend: vectorised, chunked over queries, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._ends import between
from .._plan import Plan
from .._protocols import Backend
from .._step import Step
from .._types import CacheView, HeadCounts, KeepMask, Quota, Scores
from ._torch_compaction import compacted, pick
from ._torch_mass import column_mass
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
        """Exact column sums by a second pass over the logits, a chunk of queries at a time."""
        if step.shares is not None and group == "mean" and above is None:
            told: Tensor = step.shares  # by the attention itself
            return told if weights is None else told * weights[:, None].to(told.dtype)
        return column_mass(view, step, self.chunk_elements, weights=weights, group=group, above=above)

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
        targets = _unit(pick(view.keys, there, is_anchor).to(dtype)).transpose(-1, -2)
        chunk = max(1, self.chunk_elements // max(1, there.numel()))
        for start in range(0, most_rows, chunk):
            place = here[..., start : start + chunk]
            asked = is_row[..., start : start + chunk]
            cosine = _unit(pick(view.keys, place, asked).to(dtype)) @ targets
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
        return compacted(view, plan, rows)


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
