"""The best rows, beside rows that are always kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from .._check import check_choice, check_count, check_share
from .._ends import between
from .._namespace import namespace
from .._placed import placed
from .._plan import Scored, Selection
from .._protocols import Selector
from .._repr import constructor_repr
from .._step import Step
from .._types import TEXT, Array, CacheView, KeepMask, Quota

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

    alike_heads: ClassVar[bool] = True

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
        view, last = scored.view, self._last(scored.view, quota)
        quota = placed(view, quota)
        if self.text:
            return self._beside_text(scored, quota, last, step)
        ends = {"first": self.first, "last": last}
        return Selection(step.ops.top_k(scored.scores, quota, view, surplus=step.surplus, **ends))

    def _beside_text(self, scored: Scored, quota: Array, last: Array, step: Step) -> Selection:
        """The rows of text, too, are protected; from what is left of the quota then comes the share of recent rows."""
        view, xp = scored.view, scored.view.xp
        text, image = self._text(view, step)
        rank = step.ops.arrival_rank(view)
        always = view.valid & (text | ~between(view, rank, self.first, self.last))
        late = view.only(view.valid & ~(between(view, rank, self.first, last) | always))
        protected = always | step.ops.top_k(xp.astype(rank, xp.float32), quota - _number(always, xp), late)
        # Protected rows take no more from the quota than from what is held: the others have no larger surplus.
        left, others = quota - _number(protected, xp), view.valid & ~protected
        best = step.ops.top_k(scored.scores, left, view.only(others), surplus=step.surplus)
        return Selection(protected | best, registers={"image": image})

    def _last(self, view: CacheView, quota: Quota) -> Array:
        """How many of the most recent rows are protected: one number for all heads, or int64 [B, H]."""
        if not self.recent:
            return self.last
        xp = namespace(quota)  # where the quota is, which mostly is the host
        share = xp.astype(xp.floor(self.recent * xp.astype(quota, xp.float64)), xp.int64)
        # It is taken from what other protected rows leave, so that it never pushes the quota up.
        share = xp.minimum(share, quota - self.first)
        return placed(view, xp.maximum(share, xp.full_like(share, self.last)))

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


def _number(rows: KeepMask, xp: Any) -> Array:
    """int64 [B, H]: rows of each head."""
    return xp.sum(rows, axis=-1, dtype=xp.int64)
