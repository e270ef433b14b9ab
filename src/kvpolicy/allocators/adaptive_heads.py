"""Heads of a layer compete for its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from .._check import check_share
from .._heads import all_rows
from .._plan import Scored
from .._protocols import Allocator
from .._repr import constructor_repr
from .._step import Step
from .._types import Counts, HeadCounts, Quota
from ._apportion import apportion

__all__ = ["AdaptiveHeads"]


@final
@dataclass(frozen=True, slots=True)
class AdaptiveHeads(Allocator):
    """Within a layer, the ``H * k`` best scores of all heads together say how many rows each head gets.

    ``quota[h] = (1 - floor) * count[h] + floor * k``, in integers with the exact total ``H * k``. Source: AdaKV
    (arXiv 2407.11550, algorithm 1, with its safeguard).

    Args:
        floor: share of the average budget that every head is sure of, in [0, 1].
    """

    floor: float = 0.2

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_share("AdaptiveHeads", "floor", self.floor, zero=True)

    @property
    def whole_model(self) -> bool:
        """Heads compete within their layer."""
        return False

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """Quotas of each layer; no head gets more rows than it holds."""
        return [self._layer(budget, layer, step) for layer in layers]

    def _layer(self, budget: Counts, layer: Scored, step: Step) -> HeadCounts:
        view, xp = layer.view, layer.view.xp
        scores, valid, positions = all_rows(view, layer.scores, step)
        batch, heads, rows = scores.shape
        scores, valid, positions = (xp.reshape(data, (batch, 1, heads * rows)) for data in (scores, valid, positions))
        total = budget * heads
        best = step.ops.top_k(
            scores,
            xp.asarray(total[:, None], device=view.positions.device),
            replace(view, positions=positions, valid=valid, rank=None, alike=False),
        )
        counts = xp.sum(xp.astype(xp.reshape(best, (batch, heads, rows)), xp.int64), axis=-1)
        held = step.held[view.layer]
        plenty = (held.sum(axis=1) <= total)[:, None]
        weights = (1 - self.floor) * step.ops.host(counts) + self.floor * budget[:, None]
        quota = apportion(weights.astype(np.float64), total, np.where(plenty, total[:, None], held))
        return np.where(plenty, budget[:, None], quota)
