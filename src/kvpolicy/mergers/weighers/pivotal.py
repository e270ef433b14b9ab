"""The mean of rows that were first drawn half-way to where they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from ..._plan import Assignment, Scored, Selection, Weights
from ..._protocols import Weigher
from ..._repr import constructor_repr
from ..._step import Step
from ._common import at_target, folded

__all__ = ["Pivotal"]


@final
@dataclass(frozen=True, slots=True)
class Pivotal(Weigher):
    """The m rows that fold into K make it ``(K + sum (K_i + K) / 2) / (1 + m)``: pivotal merging.

    So each weighs ``1 / (2 (1 + m))`` and K itself ``(1 + m / 2) / (1 + m)``. Convex: the weights of a kept row are
    positive and sum to 1. It goes by rows, not by the tokens that they stand for. Source: LOOK-M (arXiv 2406.18139,
    section 3.3).
    """

    __repr__ = constructor_repr

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """Half of an even share for each row that folds."""
        view, xp, into = scored.view, scored.view.xp, assignment.into
        number = folded(view, into, step)
        half = 0.5 / (1 + at_target(number, into))
        return Weights(xp.where(into >= 0, half, xp.zeros_like(half)), (1 + number / 2) / (1 + number))
