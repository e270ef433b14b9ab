"""Scores smoothed along the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, final

from .._check import check_choice, check_count, check_stage
from .._errors import PolicyError
from .._namespace import along
from .._protocols import CrossLayer, ImportanceScorer, Observer
from .._repr import constructor_repr
from .._step import Step
from .._types import Array, CacheView, Column, Scores
from ._common import wide
from ._wrapped import alike_heads, columns_of, needs_rotate, observed_by, window_of

__all__ = ["Pooled"]


@final
@dataclass(frozen=True, slots=True)
class Pooled(ImportanceScorer, Observer):
    """Each score becomes the mean, or the largest, of itself and its neighbours, so that rows are kept in runs.

    Neighbours are the ``kernel // 2`` rows on either side in order of arrival, among valid rows with a finite score
    only: at the ends there are fewer, and padding counts for nothing. Infinite scores stay as they are.
    Source: SnapKV (arXiv 2404.14469, section 4).

    Args:
        scorer: whose scores are pooled.
        kernel: rows that are pooled into one, odd.
        mode: ``"mean"`` or ``"max"``.

    Raises:
        PolicyError: if an argument is out of range, or the scorer waits for other layers.
    """

    scorer: ImportanceScorer
    kernel: int = 7
    mode: Literal["mean", "max"] = "mean"

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("Pooled", "scorer", self.scorer, ImportanceScorer)
        check_count("Pooled", "kernel", self.kernel, least=1)
        check_choice("Pooled", "mode", self.mode, ("mean", "max"))
        if self.kernel % 2 == 0:
            raise PolicyError(f"Pooled(kernel={self.kernel!r}): kernel must be odd. Hint: {self.kernel + 1}.")
        if isinstance(self.scorer, CrossLayer):
            raise PolicyError(
                f"Pooled(scorer={self.scorer!r}): its scores are made once all layers are scored, after pooling. "
                f"Hint: the other way round, Shared(Pooled(...))."
            )

    @property
    def alike_heads(self) -> bool:
        """As the scorer."""
        return alike_heads(self.scorer)

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
        """The scorer's scores, pooled in float32 or wider."""
        xp = view.xp
        scores = wide(xp, self.scorer.score(view, step))
        counts = view.valid & xp.isfinite(scores)
        arrival = xp.where(counts, view.positions, xp.full_like(view.positions, xp.iinfo(xp.int64).max))
        order = xp.argsort(arrival, axis=-1, stable=True)  # the rows that count come first
        line = along(scores, order, axis=-1)
        pooled = self._pooled(xp, line, along(counts, order, axis=-1))
        pooled = along(pooled, xp.argsort(order, axis=-1), axis=-1)
        return xp.where(counts, pooled, scores)

    def _pooled(self, xp: Any, line: Array, counts: Array) -> Array:
        """Pool a line [B, H, S] of which some places count."""
        if self.mode == "max":
            return xp.max(self._windows(xp, xp.where(counts, line, float("-inf")), float("-inf")), axis=-1)
        # Ties stay ties: summed up from the least of them, the mean of equal scores is that score to the bit, and added
        # one after another, places that see the same scores have the same mean, whatever stands beside these.
        near, there = self._windows(xp, xp.where(counts, line, 0.0), 0.0), self._windows(xp, counts, False)
        number = xp.sum(there, axis=-1, dtype=line.dtype)
        least = xp.where(number > 0, xp.min(xp.where(there, near, float("inf")), axis=-1), 0.0)
        more = xp.where(there, near - least[..., None], 0.0)
        total = reduce(xp.add, [more[..., place] for place in range(self.kernel)])
        return least + total / xp.maximum(number, xp.ones_like(number))

    def _windows(self, xp: Any, line: Array, fill: float | bool) -> Array:
        """Each place with its neighbours, [B, H, S, kernel], from those on the left to those on the right."""
        beyond = xp.full((*line.shape[:2], self.kernel // 2), fill, dtype=line.dtype, device=line.device)
        padded = xp.concat([beyond, line, beyond], axis=-1)
        places = xp.arange(line.shape[-1], device=line.device)[:, None] + xp.arange(self.kernel, device=line.device)
        return xp.reshape(xp.take(padded, xp.reshape(places, (-1,)), axis=-1), (*line.shape, self.kernel))
