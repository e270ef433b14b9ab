"""Scores from where a row came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from .._check import check_count
from .._placed import placed
from .._protocols import ImportanceScorer
from .._repr import constructor_repr
from .._step import Step
from .._types import CacheView, Scores
from ._common import arrival

__all__ = ["FixedPoint", "Recency"]


@final
@dataclass(frozen=True, slots=True)
class Recency(ImportanceScorer):
    """The later a row arrived, the higher its score: the window of StreamingLLM (arXiv 2309.17453)."""

    alike_heads: ClassVar[bool] = True
    reads_vectors: ClassVar[bool] = False

    __repr__ = constructor_repr

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """Tokens that arrived before, as a float32."""
        return arrival(view, step)


@final
@dataclass(frozen=True, slots=True)
class FixedPoint(ImportanceScorer):
    """Evict at a fixed place in the table: freeze the oldest rows and keep a recency window after them.

    With ``p = max(prompt_kept - distance, first)`` the p oldest rows never leave; of the others the oldest goes
    first. Removing "row p of the cache" at every step (Elastic Cache, arXiv 2407.18121, section 3.3) is the same
    thing; the lower bound keeps p sensible for prompts shorter than the distance.

    Args:
        distance: rows of the compressed prompt that stay evictable, counted from its end.
        first: rows at the start that are frozen however short the prompt is.
    """

    distance: int = 25
    first: int = 1

    alike_heads: ClassVar[bool] = True
    reads_vectors: ClassVar[bool] = False

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("FixedPoint", "distance", self.distance)
        check_count("FixedPoint", "first", self.first)

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """+inf for the frozen rows, the tokens that arrived before for the others."""
        xp = view.xp
        point = (step.heads.own(step.prompt_kept) - self.distance).clip(self.first)
        frozen = step.ops.arrival_rank(view) < placed(view, point)[..., None]
        return xp.where(frozen, float("inf"), arrival(view, step))
