"""Weights that fall with the distance to the row that stays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from ..._check import check_choice, check_number
from ..._namespace import along
from ..._plan import Assignment, Scored, Selection, Weights
from ..._protocols import Weigher
from ..._repr import constructor_repr
from ..._step import Step
from ..._types import Array, CacheView
from ._common import at_target, folded, normalised, summed, wide

__all__ = ["Gaussian"]

_ROUNDING = 1e-6  # of the length of a key
_CHUNK = 4096  # rows whose keys are gathered at once: bounds the temporary copy


@final
@dataclass(frozen=True, slots=True)
class Gaussian(Weigher):
    """A row i that folds into p weighs ``g_i = exp(-|k_p - k_i|^2 / (2 sigma^2))``, and p itself ``g_p = 1``.

    Convex: the weights of a kept row are divided by their sum. Source: KVMerger (arXiv 2407.08454, section 4.3), whose
    own sigma depends on the weights that it is to give.

    Args:
        sigma: the width; None: for each kept row the mean distance of the rows that fold into it, and equal weights
            where that is 0.
        scale_values: multiply the merged value by the number of its rows, as printed in the paper. Without it the
            merged value is the weighted mean, and ``Policy(count_bias=True)`` is the consistent way to let it weigh as
            many tokens as it stands for.
    """

    sigma: float | None = None
    scale_values: bool = False

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        if self.sigma is not None:
            check_number("Gaussian", "sigma", self.sigma, above=0)
        check_choice("Gaussian", "scale_values", self.scale_values, (True, False))

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """A Gaussian of the distance of keys."""
        view, xp, into = scored.view, scored.view.xp, assignment.into
        number = folded(view, into, step)
        distance = _distance(view, into)
        if self.sigma is None:
            mean = summed(distance, into, step) / xp.maximum(number, xp.ones_like(number))
            width = at_target(xp.where(mean > 0, mean, xp.ones_like(mean)), into)
        else:
            width = xp.full_like(distance, self.sigma)
        power = xp.exp(-((distance / width) ** 2) / 2)
        share = xp.where(into >= 0, power, xp.zeros_like(power))
        weights = normalised(share, xp.ones_like(number), assignment, step)
        return replace(weights, value_scale=1 + number) if self.scale_values else weights


def _distance(view: CacheView, into: Array) -> Array:
    """``|k_i - k_p|`` of each row to those that it folds into, [B, H, S, M]."""
    xp, rows = view.xp, view.shape[2]
    target = xp.where(into >= 0, into, xp.zeros_like(into))
    pieces = []
    for start in range(0, rows, _CHUNK):
        now = slice(start, start + _CHUNK)
        keys = xp.astype(view.keys[:, :, now], wide(view))
        columns = []
        for m in range(into.shape[-1]):
            there = along(view.keys, target[:, :, now, m, None], axis=2)
            square = xp.sum((keys - xp.astype(there, wide(view))) ** 2, axis=-1)
            # Keys that differ by rounding are equal: a mean of such distances would be a width of nothing but rounding.
            apart = square > _ROUNDING**2 * xp.sum(keys**2, axis=-1)
            columns.append(xp.sqrt(xp.where(apart, square, xp.zeros_like(square))))
        pieces.append(xp.stack(columns, axis=-1))
    return xp.concat(pieces, axis=2)
