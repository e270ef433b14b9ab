"""Fixed shares for every head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .._check import check_number
from .._errors import PolicyError
from .._plan import Scored
from .._protocols import Ahead, Allocator
from .._repr import constructor_repr
from .._step import Step
from .._types import Counts, HeadCounts, Quota
from ._ahead import quotas_ahead
from ._apportion import apportion

__all__ = ["HeadTable"]


@final
@dataclass(frozen=True, slots=True)
class HeadTable(Allocator, Ahead):
    """Each head's share of the whole model's rows, from a table that the caller measured once.

    Source: HeadKV (arXiv 2410.19258), whose table scores retrieval and reasoning heads.

    Args:
        table: a weight >= 0 for every layer and key/value head, ``table[layer][head]``; only proportions matter.

    Raises:
        PolicyError: if the table is no such rectangle of numbers, or all are zero.
    """

    table: tuple[tuple[float, ...], ...]

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        try:
            table = np.asarray(self.table, dtype=object)  # weights as they were given: as floats "1" and True are 1.0
        except (TypeError, ValueError):
            table = np.zeros(0)
        if table.ndim == 2:
            for (layer, head), weight in np.ndenumerate(table):
                check_number("HeadTable", f"table[{layer}][{head}]", weight, least=0)
        if table.ndim != 2 or not (weights := table.astype(np.float64)).any():
            raise PolicyError(
                f"HeadTable(table={self.table!r}): table must be a rectangle [layers][heads] of finite weights >= 0, "
                f"not all zero. Hint: ((2, 1), (1, 1)) for two layers of two key/value heads."
            )
        object.__setattr__(self, "table", tuple(map(tuple, weights.tolist())))

    @property
    def whole_model(self) -> bool:
        """A head's share is known beforehand."""
        return False

    def ahead(self, budget: Counts, layer: int, num_layers: int, heads: int, step: Step, /) -> HeadCounts:
        """The layer's line of the table, as rows; no head gets more rows than there are tokens.

        Raises:
            PolicyError: if the table has another shape than the model.
        """
        table = np.asarray(self.table)
        if table.shape != (num_layers, heads):
            raise PolicyError(
                f"HeadTable: the table is for {table.shape[0]} layers of {table.shape[1]} key/value heads; this model "
                f"has {num_layers} layers under the policy, and layer {layer} has {heads} heads."
            )
        total = budget * table.size
        caps = np.repeat(np.maximum(step.seen, budget)[:, None], table.size, axis=1)
        rows = apportion(np.repeat(table.reshape(1, -1), len(budget), axis=0), total, caps)
        return rows.reshape(len(budget), num_layers, heads)[:, layer]

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """The same, for given layers."""
        return quotas_ahead(self, budget, layers, step)
