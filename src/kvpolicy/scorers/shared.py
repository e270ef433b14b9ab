"""One score for all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from array_api_compat import device, to_device

from .._check import check_stage
from .._plan import Scored
from .._protocols import CrossLayer, ImportanceScorer, Observer
from .._repr import constructor_repr
from .._step import Step
from .._types import CacheView, Column, Scores
from ._common import mean_by_token, wide
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
        xp, here = layers[0].view.xp, device(layers[0].view.positions)  # layers may be on several devices
        valid, places, scores = (
            xp.concat([to_device(part, here) for part in parts], axis=-1)
            for parts in ([x.view.valid for x in layers], [x.view.positions for x in layers], own)
        )
        mean = mean_by_token(xp, step.ops, wide(xp, scores), valid, places)
        edges = [0]
        for scored in layers:
            edges.append(edges[-1] + scored.view.shape[2])
        return [
            to_device(mean[..., start:stop], device(scored.view.positions))
            for scored, (start, stop) in zip(layers, pairwise(edges), strict=True)
        ]
