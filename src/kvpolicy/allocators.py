"""How the budget is shared among layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from ._protocols import Allocator
from ._repr import constructor_repr
from ._types import Counts, Quota, Scored, Step

__all__ = ["Uniform"]


@final
@dataclass(frozen=True, slots=True)
class Uniform(Allocator):
    """The same number of rows for every layer and head."""

    __repr__ = constructor_repr

    @property
    def whole_model(self) -> bool:
        """Each layer can be planned as soon as it has attended."""
        return False

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """``quota[b, h] = budget[b]``, a numpy array."""
        return [np.repeat(budget[:, None], layer.view.shape[1], axis=1) for layer in layers]
