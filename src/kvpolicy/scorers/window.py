"""Scores from the attention of the latest queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .._check import check_choice, check_count
from .._protocols import ImportanceScorer
from .._repr import constructor_repr
from .._step import Step
from .._types import CacheView, Scores
from ._common import Heads, over_heads

__all__ = ["WindowMass"]


@final
@dataclass(frozen=True, slots=True)
class WindowMass(ImportanceScorer):
    """The attention a row receives from the last ``window`` queries: ``s_j = sum over those i of A[i, j]``, causal.

    Sources: SnapKV (arXiv 2404.14469, section 4); with a window of 1, the mean over heads and
    ``keep_window=False``, TOVA (arXiv 2401.06104).

    Args:
        window: how many queries; those of earlier chunks and steps count.
        heads: ``"each"`` scores every key/value head by itself (mean over the query heads that share it);
            ``"mean"`` gives all heads of a layer the same score, the mean over all query heads.
        keep_window: the rows of the window itself score +inf.

    Raises:
        PolicyError: if an argument is out of range.
    """

    window: int = 32
    heads: Heads = "each"
    keep_window: bool = True

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("WindowMass", "window", self.window, least=1)
        check_choice("WindowMass", "heads", self.heads, ("each", "mean"))
        check_choice("WindowMass", "keep_window", self.keep_window, (True, False))

    @property
    def alike_heads(self) -> bool:
        """With the mean over heads."""
        return self.heads == "mean"

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """One more pass over the logits of these queries."""
        xp, latest = view.xp, step.latest(self.window)
        scores = over_heads(view, step.ops.attention_mass(view, latest), self.heads, step)
        if not self.keep_window:
            return scores
        places = latest.query_positions
        never = xp.full_like(places, xp.iinfo(xp.int64).max)
        first = xp.min(xp.where(latest.query_valid, places, never), axis=-1)
        return xp.where(view.positions >= first[:, None, None], xp.full_like(scores, float("inf")), scores)
