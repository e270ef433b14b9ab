"""With what weight a row is folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from .._protocols import Weigher
from .._repr import constructor_repr
from .._types import Array, Scored, Selection, Step

__all__ = ["Mean"]


@final
@dataclass(frozen=True, slots=True)
class Mean(Weigher):
    """The mean over the tokens that the merged row then stands for: ``(c_a K_a + sum c_i K_i) / (c_a + sum c_i)``.

    ``c`` is the column ``count``; on rows that were never merged it is 1 and this is the plain mean
    ``(K_a + sum K_i) / (1 + m)`` of Elastic Cache (arXiv 2407.18121, section 3.2). Convex: the weights of a kept row
    are non-negative and sum to 1. With several targets a row's count is split evenly among them.
    """

    __repr__ = constructor_repr

    def weigh(self, scored: Scored, selection: Selection, into: Array, step: Step, /) -> tuple[Array, Array]:
        """Shares of the merged count, in float32 (float64 for float64 keys)."""
        view, xp = scored.view, scored.view.xp
        dtype = xp.float64 if view.keys.dtype == xp.float64 else xp.float32
        count = xp.astype(view.column("count", needed_by="Mean"), dtype)
        goes = into >= 0
        targets = xp.maximum(xp.sum(xp.astype(goes, dtype), axis=-1, keepdims=True), xp.ones_like(count)[..., None])
        share = xp.where(goes, count[..., None] / targets, xp.zeros_like(targets))
        total = count + step.ops.segment_sum(share, into)
        safe = xp.where(total > 0, total, xp.ones_like(total))
        flat = xp.reshape(xp.where(goes, into, xp.zeros_like(into)), (*into.shape[:2], -1))
        at_target = xp.reshape(xp.take_along_axis(safe, flat, axis=-1), into.shape)
        return share / at_target, xp.where(total > 0, count / safe, xp.ones_like(total))
