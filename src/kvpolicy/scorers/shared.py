"""One score for all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

from .._check import check_stage
from .._protocols import CrossLayer, ImportanceScorer, Observer
from .._repr import constructor_repr
from .._types import Array, CacheView, Column, Scored, Scores, Step
from ._common import wide
from ._wrapped import columns_of, needs_rotate, observed_by, window_of

__all__ = ["Shared"]


@final
@dataclass(frozen=True, slots=True)
class Shared(ImportanceScorer, Observer, CrossLayer):
    """Every layer gets the mean of all layers' scores, so that all keep the same tokens: ``s_j = mean over l of s_lj``.

    The mean is taken head by head over the layers that still hold the token; +inf in one of them is +inf in all.
    Source: Elastic Cache (arXiv 2407.18121, the shared sets of its ablation).

    Args:
        scorer: whose scores are averaged.

    Raises:
        PolicyError: if the scorer is none.
    """

    scorer: ImportanceScorer

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("Shared", "scorer", self.scorer, ImportanceScorer)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Those of the scorer."""
        return columns_of(self.scorer)

    @property
    def window(self) -> int:
        """That of the scorer."""
        return window_of(self.scorer)

    @property
    def needs_rotate(self) -> bool:
        """As the scorer."""
        return needs_rotate(self.scorer)

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        """What the scorer observes."""
        return observed_by(self.scorer, view, step)

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """The layer's own scores, for the time being."""
        return self.scorer.score(view, step)

    def across(self, layers: Sequence[Scored], step: Step, /) -> Sequence[Scores]:
        """The mean for each token, in every row that holds it."""
        own = [scored.scores for scored in layers]
        if isinstance(self.scorer, CrossLayer):
            own = list(self.scorer.across(layers, step))
        xp = layers[0].view.xp
        valid = xp.concat([scored.view.valid for scored in layers], axis=-1)
        places = xp.concat([scored.view.positions for scored in layers], axis=-1)
        scores = wide(xp, xp.concat(own, axis=-1))
        token = _numbered(xp, xp.where(valid, places, xp.full_like(places, -1)))
        endless = scores == float("inf")
        sums = [
            step.ops.segment_sum(xp.astype(data, scores.dtype)[..., None], token[..., None])
            for data in (xp.where(valid & ~endless, scores, xp.zeros_like(scores)), valid, valid & endless)
        ]
        total, held, ends = (xp.astype(xp.take_along_axis(data, token, axis=-1), scores.dtype) for data in sums)
        mean = total / xp.where(held > 0, held, xp.ones_like(held))
        mean = xp.where(ends > 0, xp.full_like(mean, float("inf")), mean)
        edges = [0]
        for scored in layers:
            edges.append(edges[-1] + scored.view.shape[2])
        return [mean[..., start:stop] for start, stop in pairwise(edges)]


def _numbered(xp: Any, places: Array) -> Array:
    """Positions [B, H, N] by number in ascending order, equal ones alike, int64."""
    order = xp.argsort(places, axis=-1)
    line = xp.take_along_axis(places, order, axis=-1)
    new = xp.astype(line[..., 1:] != line[..., :-1], xp.int64)
    number = xp.concat([xp.zeros_like(line[..., :1]), xp.cumulative_sum(new, axis=-1)], axis=-1)
    return xp.take_along_axis(number, xp.argsort(order, axis=-1), axis=-1)
