"""The mean over tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from ..._plan import Assignment, Scored, Selection, Weights
from ..._protocols import Weigher
from ..._repr import constructor_repr
from ..._step import Step
from ._common import normalised, shared_count

__all__ = ["Mean"]


@final
@dataclass(frozen=True, slots=True)
class Mean(Weigher):
    """The mean over the tokens that the merged row then stands for: ``(c_a K_a + sum c_i K_i) / (c_a + sum c_i)``.

    ``c`` is the column ``count``; on rows that were never merged it is 1 and this is the plain mean
    ``(K_a + sum K_i) / (1 + m)`` of Elastic Cache (arXiv 2407.18121, section 3.2). Convex: the weights of a kept row
    are non-negative and sum to 1. With several targets a row's count is split evenly among them.
    """

    alike_heads: ClassVar[bool] = True

    __repr__ = constructor_repr

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """Shares of the merged count."""
        count, share = shared_count(scored.view, assignment.into, "Mean")
        return normalised(share, count, assignment, step)
