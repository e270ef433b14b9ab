"""The row that stays of the same cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from ..._errors import PlanError
from ..._plan import Assignment, Scored, Selection
from ..._protocols import Assigner
from ..._repr import constructor_repr
from ..._step import Step

__all__ = ["SameCluster"]


@final
@dataclass(frozen=True, slots=True)
class SameCluster(Assigner):
    """The pivot of the row's cluster; which rows form one is the selector's decision (`Clusters`).

    Source: KVMerger (arXiv 2407.08454, section 4).
    """

    needs_groups: ClassVar[bool] = True
    gives_similarity: ClassVar[bool] = False

    __repr__ = constructor_repr

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
        """One target a row; -1 for a row of no cluster.

        Raises:
            PlanError: if the selection has no groups.
        """
        view, xp, groups = scored.view, scored.view.xp, selection.groups
        if groups is None:
            raise PlanError("SameCluster() needs a selection with groups. Hint: select=Clusters().")
        leaves = view.valid & ~selection.keep
        return Assignment(xp.where(leaves, groups, xp.full_like(groups, -1))[..., None])
