"""More for layers that look hard at few image rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from .._heads import all_rows
from .._plan import Scored
from .._protocols import Allocator
from .._repr import constructor_repr
from .._step import Step
from .._tokens import numbered
from .._types import TEXT, Array, Counts, Quota
from ._apportion import per_layer
from ._statistics import moments, usable

__all__ = ["ByStrengthAndSkew"]

_NOISE = 1e-9  # below it is rounding: two rows have no skewness, but 1e-17 of it would be shared out like any other


@final
@dataclass(frozen=True, slots=True)
class ByStrengthAndSkew(Allocator):
    """Layers share the budget by the strength and the skewness of the scores of their image rows.

    Strength is the sum of the scores, skewness their third standardised moment (at least 0), both of the mean over
    heads; each is scaled to sum to one over the layers, and the weight is the mean of the two. A batch row without
    image rows is measured over all its rows. Source: AirCache (arXiv 2503.23956, section 3.3).
    """

    __repr__ = constructor_repr

    @property
    def whole_model(self) -> bool:
        """Layers are compared."""
        return True

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """Quotas of all layers, equal for the heads of a layer."""
        measured = [self._measure(layer, step) for layer in layers]
        strength, skew = (np.stack([pair[n] for pair in measured], axis=1) for n in (0, 1))
        # Rounded, so that layers which differ by what float32 scores are rounded to share an odd row as equals do.
        weights = np.round((_shares(strength) + _shares(skew)) / 2, 6)
        return per_layer(weights, budget, layers, step.held)

    def _measure(self, layer: Scored, step: Step) -> tuple[Any, Any]:
        xp = layer.view.xp
        scores, there = _by_token(layer, *usable(layer, _image_rows(layer, step)), step)
        tokens = xp.sum(there, axis=-1)
        _, variance, third = moments(scores, there, xp)
        mean = xp.sum(xp.abs(scores), axis=-1) / xp.where(tokens > 0, tokens, xp.ones_like(tokens))
        flat = variance**0.5 <= _NOISE * mean
        skew = xp.where(flat, xp.zeros_like(third), third / xp.where(flat, xp.ones_like(variance), variance) ** 1.5)
        skew = xp.where(skew > _NOISE, skew, xp.zeros_like(skew))
        return tuple(np.maximum(step.ops.host(part), 0.0) for part in (xp.sum(scores, axis=-1), skew))


def _by_token(layer: Scored, scores: Array, counts: Array, step: Step) -> tuple[Array, Array]:
    """The mean over the heads that hold a token, whatever slots they hold it in, [B, N]; and 1.0 where there is one."""
    xp = layer.view.xp
    scores, valid, places = all_rows(layer.view.only(counts > 0), scores, step)
    batch, heads, rows = scores.shape
    scores, valid, places = (xp.reshape(data, (batch, 1, heads * rows)) for data in (scores, valid, places))
    counts, places = xp.astype(valid, scores.dtype), xp.where(valid, places, xp.full_like(places, -1))
    token = numbered(xp, places)
    total, held = (step.ops.segment_sum(data[..., None], token[..., None])[:, 0] for data in (scores, counts))
    return total / xp.where(held > 0, held, xp.ones_like(held)), xp.astype(held > 0, total.dtype)


def _image_rows(layer: Scored, step: Step) -> Array:
    view, xp = layer.view, layer.view.xp
    if "segment" not in view.columns:
        return view.valid
    image = (view.columns["segment"].data != TEXT) & view.valid
    return image | ~xp.any(step.heads.all(xp.any(image, axis=2, keepdims=True)), axis=1, keepdims=True)


def _shares(values: Any) -> Any:
    total = values.sum(axis=1, keepdims=True)
    return np.where(total > 0, values / np.where(total > 0, total, 1.0), 1.0 / values.shape[1])
