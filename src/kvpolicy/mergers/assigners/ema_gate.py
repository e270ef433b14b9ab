"""Fold only what is similar enough, by a threshold that follows the request."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from ..._check import check_share, check_stage
from ..._errors import PlanError, PolicyError
from ..._plan import Assignment, Scored, Selection
from ..._protocols import Assigner
from ..._repr import constructor_repr
from ..._step import Step

__all__ = ["EMAGate"]


@final
@dataclass(frozen=True, slots=True)
class EMAGate(Assigner):
    """Of the rows that another assigner places, fold those whose similarity reaches a moving mean; drop the others.

    For each head, over the rows that would fold now: ``tau = mean(similarity)`` at the first merge of a request, and
    ``tau = beta * mean(similarity) + (1 - beta) * tau`` at each later one; rows below the new tau are dropped. A head
    in which nothing would fold keeps its tau. It is the register ``gate``, [B, H], NaN until set, and so belongs to
    the request. Source: D2O (arXiv 2406.13035, section 3.3).

    Args:
        inner: the assigner whose rows pass the gate; it must give similarities, as `MostSimilar` does.
        beta: how much of the new mean goes into tau.

    Raises:
        PolicyError: if ``inner`` is known to give no similarities.
    """

    gives_similarity: ClassVar[bool] = True

    inner: Assigner
    beta: float = 0.7

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("EMAGate", "inner", self.inner, Assigner)
        check_share("EMAGate", "beta", self.beta, zero=True)
        if not getattr(self.inner, "gives_similarity", True):
            raise PolicyError(f"EMAGate goes by similarity, and {self.inner!r} gives none. Hint: MostSimilar().")

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that the inner assigner needs."""
        return tuple(getattr(self.inner, "needs", ()))

    @property
    def needs_groups(self) -> bool:
        """Whether the inner assigner folds clusters."""
        return bool(getattr(self.inner, "needs_groups", False))

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
        """The inner assignment without the rows below the gate, and the gate to carry on.

        Raises:
            PlanError: if the inner assigner gives no similarities.
        """
        found = self.inner.assign(scored, selection, step)
        if found.similarity is None:
            raise PlanError(f"EMAGate goes by similarity, and {self.inner!r} gave none.")
        xp, goes, similarity = scored.view.xp, found.into >= 0, found.similarity
        number = xp.sum(xp.astype(goes, similarity.dtype), axis=(-2, -1))
        total = xp.sum(xp.where(goes, similarity, xp.zeros_like(similarity)), axis=(-2, -1))
        most = xp.max(xp.where(goes, similarity, xp.full_like(similarity, -xp.inf)), axis=(-2, -1))
        # A mean is never above the largest, rounding included: rows that are all equally similar all pass.
        mean = xp.where(number > 0, xp.minimum(total / xp.maximum(number, xp.ones_like(number)), most), total)
        before = scored.view.registers.get("gate", xp.full_like(mean, xp.nan))
        moved = xp.minimum(self.beta * mean + (1 - self.beta) * before, xp.maximum(mean, before))
        gate = xp.where(number > 0, xp.where(xp.isnan(before), mean, moved), before)
        into = xp.where(similarity >= gate[..., None, None], found.into, xp.full_like(found.into, -1))
        return replace(found, into=into, registers={**found.registers, "gate": gate})
