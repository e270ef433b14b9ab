"""The kept row whose key is the most similar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from ..._check import check_number
from ..._plan import Assignment, Scored, Selection
from ..._protocols import Assigner
from ..._repr import constructor_repr
from ..._step import Step

__all__ = ["MostSimilar"]


@final
@dataclass(frozen=True, slots=True)
class MostSimilar(Assigner):
    """The kept row of the same head whose key has the highest cosine similarity; ties go to the earliest.

    Keys are compared as they are cached, after the rotary embedding. A key of length zero is similar to nothing (0).
    Source: LOOK-M (arXiv 2406.18139, section 3.3) and D2O (arXiv 2406.13035); with a threshold, KeepKV (arXiv
    2504.09936). With `Mean` it is clustering by key around the rows that stay.

    Args:
        threshold: fold only rows that are at least so similar and drop the others; None folds all.
    """

    gives_similarity: ClassVar[bool] = True

    threshold: float | None = None

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_number("MostSimilar", "threshold", self.threshold)

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
        """One target a row, and how similar it is."""
        view, xp = scored.view, scored.view.xp
        into, similarity = step.ops.most_similar(view, view.valid & ~selection.keep, selection.keep)
        if self.threshold is not None:
            into = xp.where(similarity >= self.threshold, into, xp.full_like(into, -1))
        return Assignment(into[..., None], similarity[..., None])
