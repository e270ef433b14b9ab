"""More for the first layers, less for the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .._check import check_count, check_number
from .._plan import Scored
from .._protocols import Ahead, Allocator
from .._repr import constructor_repr
from .._step import Step
from .._types import Counts, HeadCounts, Quota
from ._ahead import quotas_ahead
from ._apportion import apportion

__all__ = ["Pyramid"]


@final
@dataclass(frozen=True, slots=True)
class Pyramid(Allocator, Ahead):
    """Budgets that fall linearly from the first layer to the last.

    Of a budget of k rows a layer, every layer gets ``least``; of the other ``r = k - least`` the last layer gets
    ``r / beta`` and the first ``2 r - r / beta``, so that the total is exactly ``k * L``. Everybody gets k where a
    prompt has fewer than 2 k tokens. Source: PyramidKV (arXiv 2406.02069, section 3.2).

    Args:
        beta: steepness, at least 1; 1 gives every layer the same.
        least: rows that every layer gets first, such as an observation window.
    """

    beta: float = 20.0
    least: int = 0

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_number("Pyramid", "beta", self.beta, least=1)
        check_count("Pyramid", "least", self.least)

    @property
    def whole_model(self) -> bool:
        """A layer's budget follows from its number."""
        return False

    def ahead(self, budget: Counts, layer: int, num_layers: int, heads: int, step: Step, /) -> HeadCounts:
        """The layer's budget, the same for its heads."""
        rest = np.maximum(budget - self.least, 0)
        slope = np.linspace(2 - 1 / self.beta, 1 / self.beta, num_layers)
        total = rest * num_layers
        rows = apportion(
            np.repeat(slope[None], len(budget), axis=0), total, np.repeat(total[:, None], num_layers, axis=1)
        )
        uniform = (budget <= self.least) | (step.seen < 2 * budget) | (num_layers == 1)
        quota = np.where(uniform, budget, self.least + rows[:, layer])
        return np.repeat(quota[:, None], heads, axis=1)

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """The same, for given layers."""
        return quotas_ahead(self, budget, layers, step)
