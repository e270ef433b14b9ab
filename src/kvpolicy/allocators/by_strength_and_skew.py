"""More for layers that look hard at few image rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from .._protocols import Allocator
from .._repr import constructor_repr
from .._types import IMAGE, Array, Counts, Quota, Scored, Step
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
        return per_layer((_shares(strength) + _shares(skew)) / 2, budget, layers, step.held)

    def _measure(self, layer: Scored, step: Step) -> tuple[Any, Any]:
        xp = layer.view.xp
        scores, counts = usable(layer, _image_rows(layer))
        heads = xp.sum(counts, axis=1)
        scores = xp.sum(scores, axis=1) / xp.where(heads > 0, heads, xp.ones_like(heads))
        _, variance, third = moments(scores, xp.astype(heads > 0, scores.dtype), xp)
        mean = xp.sum(xp.abs(scores), axis=-1) / scores.shape[-1]
        flat = variance**0.5 <= _NOISE * mean
        skew = xp.where(flat, xp.zeros_like(third), third / xp.where(flat, xp.ones_like(variance), variance) ** 1.5)
        skew = xp.where(skew > _NOISE, skew, xp.zeros_like(skew))
        return tuple(np.maximum(step.ops.host(part), 0.0) for part in (xp.sum(scores, axis=-1), skew))


def _image_rows(layer: Scored) -> Array:
    view, xp = layer.view, layer.view.xp
    if "segment" not in view.columns:
        return view.valid
    image = (view.columns["segment"].data == IMAGE) & view.valid
    return image | ~xp.any(image, axis=(1, 2), keepdims=True)


def _shares(values: Any) -> Any:
    total = values.sum(axis=1, keepdims=True)
    return np.where(total > 0, values / np.where(total > 0, total, 1.0), 1.0 / values.shape[1])
