"""More for layers whose attention is dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .._check import check_share
from .._columns import strong_at
from .._plan import Scored
from .._protocols import Allocator
from .._repr import constructor_repr
from .._step import Step
from .._types import Counts, Quota
from ._apportion import per_layer

__all__ = ["BySparsity"]


@final
@dataclass(frozen=True, slots=True)
class BySparsity(Allocator):
    """Layers share the budget by the share of attention entries that are not negligible.

    An entry is negligible below a share of the largest that its query pays; which queries count, the scorer says
    (`PostImageMass`). Source: VL-Cache (arXiv 2410.23317, section 4.1).

    Args:
        threshold: that share; the scorer's must be the same.
    """

    threshold: float = 0.01

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_share("BySparsity", "threshold", self.threshold)

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that `PostImageMass` observes at this threshold."""
        return (strong_at(self.threshold), "asked_after")

    @property
    def whole_model(self) -> bool:
        """Layers are compared."""
        return True

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """Quotas of all layers, equal for the heads of a layer; no weight is below 0.01."""
        density = np.stack([self._density(layer, step) for layer in layers], axis=1)
        return per_layer(np.clip(density, 0.01, 1.0), budget, layers, step.held)

    def _density(self, layer: Scored, step: Step) -> Counts:
        view, xp = layer.view, layer.view.xp
        strong, asked = (
            xp.sum(step.heads.all(xp.sum(xp.where(view.valid, data, xp.zeros_like(data)), axis=2)), axis=1)
            for data in (xp.astype(view.column(name, needed_by="BySparsity"), xp.float64) for name in self.needs)
        )
        density: Counts = step.ops.host(strong / xp.where(asked > 0, asked, xp.ones_like(asked)))
        return density
