"""Everybody the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .._plan import Scored
from .._protocols import Ahead, Allocator
from .._repr import constructor_repr
from .._step import Step
from .._types import Counts, HeadCounts, Quota
from ._ahead import quotas_ahead

__all__ = ["Uniform"]


@final
@dataclass(frozen=True, slots=True)
class Uniform(Allocator, Ahead):
    """The same number of rows for every layer and head."""

    __repr__ = constructor_repr

    @property
    def whole_model(self) -> bool:
        """Each layer can be planned as soon as it has attended."""
        return False

    def ahead(self, budget: Counts, layer: int, num_layers: int, heads: int, step: Step, /) -> HeadCounts:
        """``quota[b, h] = budget[b]``."""
        return np.repeat(budget[:, None], heads, axis=1)

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """The same, for given layers."""
        return quotas_ahead(self, budget, layers, step)
