"""The kept row nearest by arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from ..._check import check_count
from ..._ends import between
from ..._plan import Assignment, Scored, Selection
from ..._protocols import Assigner
from ..._repr import constructor_repr
from ..._step import Step

__all__ = ["NearestPosition"]


@final
@dataclass(frozen=True, slots=True)
class NearestPosition(Assigner):
    """The kept row that arrived nearest; a row exactly between two goes to the earlier.

    So the buckets between kept rows split at ``floor((t_k + t_{k+1}) / 2)``. Source: Elastic Cache (arXiv 2407.18121,
    section 3.2).

    Args:
        first: kept rows at the start that nothing is folded into. An attention sink works because its value is small;
            averaged with its neighbours it no longer is one.
        last: kept rows at the end that nothing is folded into.
    """

    alike_heads: ClassVar[bool] = True
    gives_similarity: ClassVar[bool] = False

    first: int = 0
    last: int = 0

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("NearestPosition", "first", self.first)
        check_count("NearestPosition", "last", self.last)

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
        """One target a row; -1, so that a row is dropped, where no kept row may be folded into."""
        view, xp = scored.view, scored.view.xp
        anchors = selection.keep
        if self.first or self.last:
            anchors = anchors & between(view, step.ops.arrival_rank(view), self.first, self.last)
        near = step.ops.nearest_position(view, anchors)
        leaves = view.valid & ~selection.keep
        return Assignment(xp.where(leaves, near, -1)[..., None])
