"""Go on as the prompt was shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from .._plan import Scored
from .._protocols import Ahead, Allocator
from .._repr import constructor_repr
from .._step import Phase, Step
from .._types import Counts, HeadCounts, Quota
from ._ahead import quotas_ahead
from ._apportion import apportion

__all__ = ["LikePrompt"]


@final
@dataclass(frozen=True, slots=True)
class LikePrompt(Allocator, Ahead):
    """Layers and heads share the budget of a decode step in the proportions of the prefill plan.

    Where there was none, and in a prompt itself, everybody gets the same.
    """

    __repr__ = constructor_repr

    @property
    def whole_model(self) -> bool:
        """The proportions are known beforehand."""
        return False

    def ahead(self, budget: Counts, layer: int, num_layers: int, heads: int, step: Step, /) -> HeadCounts:
        """In proportion to `Step.prompt_quota`, with the exact total over the whole model."""
        if step.phase is Phase.PREFILL:
            return np.repeat(budget[:, None], heads, axis=1)
        quotas = step.prompt_quota
        sizes = [quota.shape[1] for quota in quotas]
        whole = np.concatenate(quotas, axis=1)
        total = budget * sum(sizes)
        if np.array_equal(whole.sum(axis=1), total):  # a constant budget: nothing to share anew
            return quotas[layer]
        given = whole.any(axis=1, keepdims=True)
        caps = np.repeat(total[:, None], whole.shape[1], axis=1)
        rows = np.where(given, apportion(whole.astype(np.float64), total, caps), budget[:, None])
        start = sum(sizes[:layer])
        return rows[:, start : start + heads]

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """The same, for given layers."""
        return quotas_ahead(self, budget, layers, step)
