"""More for layers whose attention is spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .._check import check_count
from .._errors import PolicyError
from .._plan import Scored
from .._protocols import Allocator
from .._repr import constructor_repr
from .._step import Step
from .._types import Counts, Quota
from ._apportion import per_layer
from ._statistics import moments, usable

__all__ = ["ByVariance"]


@final
@dataclass(frozen=True, slots=True)
class ByVariance(Allocator):
    """Layers share the budget by ``softmax(-v)``: where few rows take all the attention, few rows are enough.

    ``v`` is the variance of a head's scores over its rows, min-max scaled over the heads of the layer, mean over heads.
    Source: D2O (arXiv 2406.13035, equation 3).

    Args:
        exempt: layers that keep all their rows; they count inside the total.
    """

    exempt: tuple[int, ...] = ()

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        if not isinstance(self.exempt, Iterable):
            raise PolicyError(f"ByVariance(exempt={self.exempt!r}): exempt takes layer numbers, such as (0, 1).")
        object.__setattr__(self, "exempt", tuple(self.exempt))
        for layer in self.exempt:
            check_count("ByVariance", "exempt", layer)

    @property
    def whole_model(self) -> bool:
        """Layers are compared."""
        return True

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """Quotas of all layers, equal for the heads of a layer.

        Raises:
            PolicyError: if the exempt layers alone take more than the total.
        """
        spread = np.stack([self._spread(layer, step) for layer in layers], axis=1)  # [B, L]
        weights = np.exp(-(spread - spread.min(axis=1, keepdims=True)))
        exempt = np.isin(np.arange(len(layers)), self.exempt)
        if not exempt.any():
            return per_layer(weights, budget, layers, step.held)
        held = np.stack([rows.max(axis=1) for rows in step.held], axis=1)
        left = budget * len(layers) - held[:, exempt].sum(axis=1)
        if np.any(left < 0):
            raise PolicyError(
                f"ByVariance(exempt={self.exempt!r}): these layers hold {held[:, exempt].sum(axis=1).max()} rows a "
                f"head; the budget of all layers is {int((budget * len(layers)).min())}. "
                f"Hint: exempt fewer layers, or keep more."
            )
        # An exempt layer is one whose share is whatever it holds: as heavy as need be, and capped by its rows.
        heavy = weights.sum(axis=1, keepdims=True) * 1e12
        return per_layer(np.where(exempt[None], heavy, weights), budget, layers, step.held)

    def _spread(self, layer: Scored, step: Step) -> Counts:
        xp = layer.view.xp
        _, variance, _ = moments(*usable(layer), xp)
        variance = step.heads.all(variance)
        low, high = (reduce(variance, axis=1, keepdims=True) for reduce in (xp.min, xp.max))
        apart = high - low > 1e-9 * high  # heads that differ by rounding are equal
        spread = (variance - low) / xp.where(apart, high - low, xp.ones_like(high))
        scaled: Counts = step.ops.host(xp.mean(xp.where(apart, spread, xp.zeros_like(spread)), axis=1))
        return scaled
