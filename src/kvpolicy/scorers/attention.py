"""Scores from the attention that rows have received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from .._check import check_choice
from .._protocols import ImportanceScorer, Observer
from .._repr import constructor_repr
from .._types import CacheView, Column, Scores, Step

__all__ = ["AttentionMass"]


@final
@dataclass(frozen=True, slots=True)
class AttentionMass(ImportanceScorer, Observer):
    """The attention a row has received, summed over every query that was observed: ``s_j = sum_i A[i, j]``.

    The sum is kept in the column ``mass`` and moves with its row, so it goes on through chunks, decode steps and
    turns. Sources: H2O (arXiv 2306.14048, section 4), Elastic Cache (arXiv 2407.18121, equation 3).

    Args:
        heads: ``"each"`` scores every key/value head by itself (mean over the query heads that share it);
            ``"mean"`` gives all heads of a layer the same score, the mean over heads.
    """

    heads: Literal["each", "mean"] = "each"

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_choice("AttentionMass", "heads", self.heads, ("each", "mean"))

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        """Add this pass's column sums to ``mass``."""
        mass = step.ops.attention_mass(view, step)
        if "mass" in view.columns:
            mass = view.columns["mass"].data + mass
        return {"mass": Column(mass, on_merge="sum")}

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """The column, reduced over heads as asked."""
        mass = view.column("mass", needed_by="AttentionMass")
        if self.heads == "mean":
            xp = view.xp
            mass = xp.broadcast_to(xp.mean(mass, axis=1, keepdims=True), mass.shape)
        return mass
