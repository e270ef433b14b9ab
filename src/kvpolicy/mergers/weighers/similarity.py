"""Weights that go by how similar a row is to the one that it folds into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from ..._plan import Assignment, Scored, Selection, Weights
from ..._protocols import Weigher
from ..._repr import constructor_repr
from ..._step import Step
from ..._types import Array
from ._common import at_target, folded, normalised, wide

__all__ = ["SimilaritySoftmax", "SimilarityWeighted"]


@final
@dataclass(frozen=True, slots=True)
class SimilarityWeighted(Weigher):
    """The m rows that fold into K make it ``(K + sum s_i K_i) / (1 + m)``, with s_i their similarity.

    Not convex: the weights sum to less than 1 unless all similarities are 1, and a negative similarity turns its row
    around. Source: LOOK-M (arXiv 2406.18139, section 3.3), its weighted merging as printed.
    """

    needs_similarity: ClassVar[bool] = True

    __repr__ = constructor_repr

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """Similarities over the number of rows."""
        number = folded(scored.view, assignment.into, step)
        return Weights(_similarity(scored, assignment) / (1 + at_target(number, assignment.into)), 1 / (1 + number))


@final
@dataclass(frozen=True, slots=True)
class SimilaritySoftmax(Weigher):
    """The rows that fold weigh ``e^{s_i}``, with s_i their similarity, and the row that they fold into ``e``.

    Convex: the weights of a kept row are divided by their sum. Source: D2O (arXiv 2406.13035, section 3.3).
    """

    needs_similarity: ClassVar[bool] = True

    __repr__ = constructor_repr

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """A softmax over the similarities, that of the kept row to itself being 1."""
        view, xp = scored.view, scored.view.xp
        # The same weights as from e^s and e, whatever the assigner calls similar: no exponent is out of range.
        power = xp.exp(_similarity(scored, assignment) - 1)
        share = xp.where(assignment.into >= 0, power, xp.zeros_like(power))
        return normalised(share, xp.ones(view.shape, dtype=wide(view), device=view.positions.device), assignment, step)


def _similarity(scored: Scored, assignment: Assignment) -> Array:
    """[B, H, S, M], 0 where a row does not fold."""
    xp = scored.view.xp
    similarity = xp.astype(assignment.similarity, wide(scored.view))
    return xp.where(assignment.into >= 0, similarity, xp.zeros_like(similarity))
