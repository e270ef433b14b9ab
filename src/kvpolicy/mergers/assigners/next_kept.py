"""The kept rows that arrived next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from ..._check import check_count
from ..._namespace import along
from ..._plan import Assignment, Scored, Selection
from ..._protocols import Assigner
from ..._repr import constructor_repr
from ..._step import Step

__all__ = ["NextKept"]


@final
@dataclass(frozen=True, slots=True)
class NextKept(Assigner):
    """The next ``count`` kept rows in order of arrival; fewer near the end.

    Source: CaM (Cache Merging, ICML 2024), which spreads the value of a row over those that follow it.

    Args:
        count: how many targets a row has.
    """

    gives_similarity: ClassVar[bool] = False

    count: int = 32

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("NextKept", "count", self.count, least=1)

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
        """``count`` targets a row, the nearest first; -1 beyond the last kept row."""
        view, xp = scored.view, scored.view.xp
        rows, device = view.shape[2], view.positions.device
        rank = step.ops.arrival_rank(view)
        order = xp.argsort(rank, axis=-1, stable=True)
        passed = xp.cumulative_sum(xp.astype(along(selection.keep, order, axis=-1), xp.int64), axis=-1)
        # Place n of ``kept`` is the n-th kept row, and that many kept rows came before a row that leaves.
        kept = xp.argsort(xp.where(selection.keep, rank, xp.full_like(rank, rows)), axis=-1, stable=True)
        before = along(passed, xp.minimum(rank, xp.full_like(rank, rows - 1)), axis=-1)
        place = before[..., None] + xp.arange(self.count, dtype=xp.int64, device=device)
        there = (view.valid & ~selection.keep)[..., None] & (place < passed[..., -1:, None])
        flat = xp.reshape(xp.where(there, place, xp.zeros_like(place)), (*view.shape[:2], -1))
        target = xp.reshape(along(kept, flat, axis=-1), place.shape)
        return Assignment(xp.where(there, target, xp.full_like(target, -1)))
