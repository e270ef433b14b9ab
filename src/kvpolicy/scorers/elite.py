"""Scores from the queries that matter most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .._check import check_choice, check_count, check_share
from .._protocols import ImportanceScorer
from .._repr import constructor_repr
from .._step import Step
from .._types import TEXT, Array, CacheView, Scores
from ._common import Heads, at, over_heads

__all__ = ["EliteMass"]


@final
@dataclass(frozen=True, slots=True)
class EliteMass(ImportanceScorer):
    """The attention a row receives from the elite of the last queries: ``s_j = sum over elite i of A[i, j]``.

    Query i of the window matters as much as the last query attends to the row at its position, mean over all query
    heads of the layer. Elite are the text queries that reach ``threshold`` of the most that any text query matters,
    and the last query. Where nothing says which rows are image, all are text.
    Source: AirCache (arXiv 2503.23956, section 3).

    Args:
        window: how many of the latest queries are looked at.
        threshold: share of the largest importance that makes a query elite.
        heads: ``"each"`` scores every key/value head by itself (mean over the query heads that share it);
            ``"mean"`` gives all heads of a layer the same score, the mean over heads.

    Raises:
        PolicyError: if an argument is out of range.
    """

    window: int = 64
    threshold: float = 0.1
    heads: Heads = "each"

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("EliteMass", "window", self.window, least=1)
        check_share("EliteMass", "threshold", self.threshold, zero=True)
        check_choice("EliteMass", "heads", self.heads, ("each", "mean"))

    @property
    def alike_heads(self) -> bool:
        """With the mean over heads."""
        return self.heads == "mean"

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """Two passes over the logits: of the last query, and of the window's."""
        latest = step.latest(self.window)
        elite = view.xp.astype(self._elite(view, latest), view.xp.float32)
        return over_heads(view, step.ops.attention_mass(view, latest, weights=elite), self.heads, step)

    def _elite(self, view: CacheView, latest: Step) -> Array:
        """Which queries of the window count, bool [B, Q]."""
        xp, places, valid = view.xp, latest.query_positions, latest.query_valid
        paid = latest.ops.attention_mass(view, latest.latest(1))
        matters = xp.mean(latest.heads.all(at(view, paid, places)), axis=1)
        text = valid
        if "segment" in view.columns:
            image = view.columns["segment"].data != TEXT
            text = text & ~xp.any(latest.heads.all(at(view, image, places)), axis=1)
        most = xp.max(xp.where(text, matters, xp.zeros_like(matters)), axis=-1, keepdims=True)
        last = xp.max(xp.where(valid, places, xp.full_like(places, -1)), axis=-1, keepdims=True)
        return (text & (matters >= self.threshold * most)) | (valid & (places == last))
