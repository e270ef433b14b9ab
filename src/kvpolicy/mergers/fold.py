"""Merging as two questions: into which kept row, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .._check import check_choice, check_stage
from .._errors import PlanError, PolicyError
from .._plan import Assignment, Plan, Scored, Selection, Weights
from .._protocols import Assigner, Merger, Weigher
from .._repr import constructor_repr
from .._step import Step

__all__ = ["Fold"]


@final
@dataclass(frozen=True, slots=True)
class Fold(Merger):
    """Fold every row that an assigner places into its kept row, weighted by a weigher; drop the others.

    Args:
        assign: where a row goes, for example `NearestPosition`.
        weigh: with what weight, for example `Mean`.
        keys: False folds values only and leaves the kept keys as they are.

    Raises:
        PolicyError: if the weigher says ``needs_similarity`` and the assigner ``gives_similarity = False``.
    """

    assign: Assigner
    weigh: Weigher
    keys: bool = True

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("Fold", "assign", self.assign, Assigner)
        check_stage("Fold", "weigh", self.weigh, Weigher)
        check_choice("Fold", "keys", self.keys, (True, False))
        if self._needs_similarity and not getattr(self.assign, "gives_similarity", True):
            raise PolicyError(
                f"Fold: {self.weigh!r} weighs by similarity, and {self.assign!r} gives none. Hint: MostSimilar()."
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that either half needs."""
        return (*getattr(self.assign, "needs", ()), *getattr(self.weigh, "needs", ()))

    @property
    def needs_groups(self) -> bool:
        """Whether either half works on clusters."""
        return any(bool(getattr(half, "needs_groups", False)) for half in (self.assign, self.weigh))

    @property
    def alike_heads(self) -> bool:
        """Whether heads that hold and keep the same tokens, none of them merged before, get the same plan."""
        return all(bool(getattr(half, "alike_heads", False)) for half in (self.assign, self.weigh))

    @property
    def needs_count_bias(self) -> bool:
        """Whether the weigher relies on counts in the attention."""
        return bool(getattr(self.weigh, "needs_count_bias", False))

    @property
    def _needs_similarity(self) -> bool:
        return bool(getattr(self.weigh, "needs_similarity", False))

    def merge(self, scored: Scored, selection: Selection, step: Step, /) -> Plan:
        """One set of targets and weights for keys and values.

        Raises:
            PlanError: if a half does not return an `Assignment` or `Weights`, or a similarity is missing.
        """
        assignment = self.assign.assign(scored, selection, step)
        if not isinstance(assignment, Assignment):
            raise PlanError(f"{self.assign!r}.assign() returned a {type(assignment).__name__}, not an Assignment.")
        if self._needs_similarity and assignment.similarity is None:
            raise PlanError(f"{self.weigh!r} weighs by similarity, and {self.assign!r} gave none.")
        weights = self.weigh.weigh(scored, selection, assignment, step)
        if not isinstance(weights, Weights):
            raise PlanError(f"{self.weigh!r}.weigh() returned a {type(weights).__name__}, not Weights.")
        into, xp = assignment.into, scored.view.xp
        if weights.folds is not None:
            into = xp.where(weights.folds, into, xp.full_like(into, -1))
        return Plan(
            keep=selection.keep,
            into=into,
            weight=weights.weight,
            self_weight=weights.own,
            merge_keys=self.keys,
            key_scale=weights.key_scale,
            value_scale=weights.value_scale,
            registers=assignment.registers,
        )
