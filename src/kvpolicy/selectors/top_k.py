"""The best rows, beside rows that are always kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from .._check import check_choice, check_count, check_share
from .._protocols import Selector
from .._repr import constructor_repr
from .._types import TEXT, Array, CacheView, KeepMask, Quota, Scored, Selection, Step

__all__ = ["TopK"]


@final
@dataclass(frozen=True, slots=True)
class TopK(Selector):
    """The rows with the highest scores, beside rows that are always kept.

    Protected rows count inside the quota; where they alone exceed it they stay all the same and the report says so.
    Ties go to the later arrival.

    Args:
        first: protect the first so many tokens of each batch row (attention sinks).
        last: protect the most recent so many.
        recent: share of the quota, in [0, 1], that goes to the most recent rows whatever their score.
        text: protect every row whose ``segment`` is text, so that only image rows compete (LOOK-M, arXiv 2406.18139);
            in a batch row that never held an image row, all compete. The register ``image`` remembers that one did.
    """

    first: int = 0
    last: int = 0
    recent: float = 0.0
    text: bool = False

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("TopK", "first", self.first)
        check_count("TopK", "last", self.last)
        check_share("TopK", "recent", self.recent, zero=True)
        check_choice("TopK", "text", self.text, (True, False))

    @property
    def floor(self) -> int:
        """Rows at both ends that stay however small the quota is."""
        return self.first + self.last

    def select(self, scored: Scored, quota: Quota, step: Step, /) -> Selection:
        """Protected rows, then the best of the others."""
        view, xp = scored.view, scored.view.xp
        quota = xp.asarray(quota, dtype=xp.int64, device=view.positions.device)
        if self == TopK():
            return Selection(step.ops.top_k(scored.scores, quota, view))
        rank = step.ops.arrival_rank(view)
        held = xp.sum(xp.astype(view.valid, xp.int64), axis=-1)
        # The recent share is taken from what other protected rows leave, so that it never pushes the quota up.
        share = xp.astype(xp.floor(self.recent * xp.astype(quota, xp.float64)), xp.int64)
        share = xp.minimum(share, quota - self.first)
        last = xp.maximum(share, xp.full_like(quota, self.last))
        protected = (rank < self.first) | (rank >= (held - last)[..., None])
        registers: dict[str, Array] = {}
        if self.text:
            text, registers["image"] = self._text(view, step)
            always = (text | (rank < self.first) | (rank >= (held - self.last)[..., None])) & view.valid
            room = xp.maximum(quota - xp.sum(xp.astype(always, xp.int64), axis=-1), xp.zeros_like(quota))
            late = replace(view, valid=view.valid & protected & ~always)
            protected = always | step.ops.top_k(xp.astype(rank, xp.float32), room, late)
        protected = protected & view.valid
        left = quota - xp.sum(xp.astype(protected, xp.int64), axis=-1)
        others = replace(view, valid=view.valid & ~protected)
        best = step.ops.top_k(scored.scores, xp.maximum(left, xp.zeros_like(left)), others)
        return Selection(protected | best, registers=registers)

    def _text(self, view: CacheView, step: Step) -> tuple[KeepMask, Array]:
        """Text rows of batch rows that hold an image, or did, bool [B, H, S]; and which did, [B, H]."""
        xp, hint = view.xp, "pass inputs= to PolicyCache, or segments=."
        segment = view.column("segment", needed_by="TopK(text=True)", hint=hint)
        image = xp.any(view.valid & (segment != TEXT), axis=2, keepdims=True)
        image = xp.any(step.heads.all(image), axis=1, keepdims=True)
        if "image" in view.registers:
            image = image | (view.registers["image"] == 1)[..., None]
        ever = xp.broadcast_to(image[..., 0], view.shape[:2])
        return image & (segment == TEXT), xp.where(ever, xp.ones_like(ever, dtype=xp.float32), xp.nan)
