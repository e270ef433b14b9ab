"""Values that are handed on by chance, the likelier the more a row matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from ..._check import check_count
from ..._hash import uniform
from ..._plan import Assignment, Scored, Selection, Weights
from ..._protocols import Weigher
from ..._repr import constructor_repr
from ..._step import Step
from ._common import wide

__all__ = ["Prominence"]


@final
@dataclass(frozen=True, slots=True)
class Prominence(Weigher):
    """A row that leaves folds by chance, with probability ``clip(score / largest finite score kept, 0, 1)``.

    If it does, each of its targets gets ``1 / M`` of it, where M is how many targets the assigner gives at most, and
    keeps itself whole: values are added, so use it with ``Fold(..., keys=False)``. A row that is not drawn is dropped.
    Where no kept row has a positive score nothing folds. The draw depends on nothing but the seed, the layer and which
    token of its batch row it is.

    Source: CaM (Cache Merging, ICML 2024), with `NextKept`.

    Args:
        seed: another seed, other draws.
    """

    seed: int = 0

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Prominence", "seed", self.seed)

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """An even share for each target of a row that was drawn; the others do not fold."""
        view, xp, into = scored.view, scored.view.xp, assignment.into
        scores = xp.astype(scored.scores, xp.float64)  # a ratio of scores so small that float32 has none of them
        known = selection.keep & xp.isfinite(scores)
        most = xp.max(xp.where(known, scores, xp.zeros_like(scores)), axis=-1, keepdims=True)
        # Draws lie in [0, 1), so that a probability below 0 or above 1 needs no clipping; a product cannot overflow.
        draw = uniform(view.positions, step.padding, seed=self.seed, layer=view.layer)
        drawn = (draw * most < scores) & (most > 0)
        folds = (into >= 0) & drawn[..., None]
        weight = xp.astype(folds, wide(view)) / into.shape[-1]
        return Weights(weight, xp.ones_like(scores, dtype=wide(view)), folds=folds)
