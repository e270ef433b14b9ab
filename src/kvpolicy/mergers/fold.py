"""Merging as two questions: into which kept row, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .._check import check_choice, check_stage
from .._protocols import Assigner, Merger, Weigher
from .._repr import constructor_repr
from .._types import Plan, Scored, Selection, Step

__all__ = ["Fold"]


@final
@dataclass(frozen=True, slots=True)
class Fold(Merger):
    """Fold every row that an assigner places into its kept row, weighted by a weigher; drop the others.

    Args:
        assign: where a row goes, for example `NearestPosition`.
        weigh: with what weight, for example `Mean`.
        keys: False folds values only and leaves the kept keys as they are.
    """

    assign: Assigner
    weigh: Weigher
    keys: bool = True

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("Fold", "assign", self.assign, Assigner)
        check_stage("Fold", "weigh", self.weigh, Weigher)
        check_choice("Fold", "keys", self.keys, (True, False))

    def merge(self, scored: Scored, selection: Selection, step: Step, /) -> Plan:
        """One set of targets and weights for keys and values."""
        into = self.assign.assign(scored, selection, step)
        weight, self_weight = self.weigh.weigh(scored, selection, into, step)
        return Plan(selection.keep, into, weight, self_weight, merge_keys=self.keys)
