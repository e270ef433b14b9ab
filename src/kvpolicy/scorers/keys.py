"""Scores from keys alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .._protocols import ImportanceScorer
from .._repr import constructor_repr
from .._step import Step
from .._types import CacheView, Scores
from ._common import lengths, unit, wide

__all__ = ["KeyDifference", "KeyNorm"]


@final
@dataclass(frozen=True, slots=True)
class KeyNorm(ImportanceScorer):
    """The shorter its key, the more a row is worth: ``s_j = -|k_j|``. Source: Devoto et al. (arXiv 2406.11430)."""

    __repr__ = constructor_repr

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """Negative lengths, float32 or wider."""
        return -lengths(view.xp, wide(view.xp, view.keys))[..., 0]


@final
@dataclass(frozen=True, slots=True)
class KeyDifference(ImportanceScorer):
    """The more its key differs from the others, the more a row is worth: ``s_j = -cos(k_j, mean of k / |k|)``.

    The mean goes over the valid rows of a head; a key of length zero is similar to nothing.
    Source: KeyDiff (arXiv 2504.15364, section 3).
    """

    __repr__ = constructor_repr

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """Negative cosines, float32 or wider."""
        xp = view.xp
        valid = view.valid[..., None]
        keys = unit(xp, wide(xp, view.keys))
        keys = xp.where(valid, keys, xp.zeros_like(keys))
        number = xp.astype(xp.sum(xp.astype(valid, xp.int64), axis=2, keepdims=True), keys.dtype)
        mean = xp.sum(keys, axis=2, keepdims=True) / xp.where(number > 0, number, xp.ones_like(number))
        return -xp.sum(keys * unit(xp, mean), axis=-1)
