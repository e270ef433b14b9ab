"""Layers first, then the heads of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .._check import check_stage
from .._errors import PolicyError
from .._plan import Scored
from .._protocols import Allocator
from .._repr import constructor_repr
from .._step import Step
from .._types import Counts, Quota

__all__ = ["Nested"]


@final
@dataclass(frozen=True, slots=True)
class Nested(Allocator):
    """One allocator gives each layer its budget, another shares that among the heads of the layer.

    Args:
        layers: gives the heads of a layer the same, such as `Pyramid` or `ByVariance`.
        heads: works within a layer, such as `AdaptiveHeads`.
    """

    layers: Allocator
    heads: Allocator

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("Nested", "layers", self.layers, Allocator)
        check_stage("Nested", "heads", self.heads, Allocator)
        if self.heads.whole_model:
            raise PolicyError(f"Nested(heads={self.heads!r}): it compares layers; heads= must work within one layer.")

    @property
    def whole_model(self) -> bool:
        """All layers are shared out together, so that the total can be exact."""
        return True

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that either needs."""
        return (*getattr(self.layers, "needs", ()), *getattr(self.heads, "needs", ()))

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """Quotas of all layers.

        Raises:
            PolicyError: if the first allocator treats the heads of a layer differently.
        """
        quotas: list[Quota] = []
        for layer, shares in zip(layers, self.layers.allocate(budget, layers, step), strict=True):
            rows = shares if isinstance(shares, np.ndarray) else step.ops.host(shares)
            if (rows != rows[:, :1]).any():
                raise PolicyError(f"Nested(layers={self.layers!r}): it gives the heads of a layer different budgets.")
            quotas.extend(self.heads.allocate(rows[:, 0], [layer], step))
        return quotas
