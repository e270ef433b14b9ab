"""Into which kept row a dropped row goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .._protocols import Assigner
from .._repr import constructor_repr
from .._types import Array, Scored, Selection, Step

__all__ = ["NearestPosition"]


@final
@dataclass(frozen=True, slots=True)
class NearestPosition(Assigner):
    """The kept row that arrived nearest; a row exactly between two goes to the earlier.

    So the buckets between kept rows split at ``floor((t_k + t_{k+1}) / 2)``. Source: Elastic Cache (arXiv 2407.18121,
    section 3.2).
    """

    __repr__ = constructor_repr

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Array:
        """int64 [B, H, S, 1]."""
        view, xp = scored.view, scored.view.xp
        near = step.ops.nearest_position(view, selection.keep)
        leaves = view.valid & ~selection.keep
        return xp.where(leaves, near, xp.full_like(near, -1))[..., None]
