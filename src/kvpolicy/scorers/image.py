"""Scores from what is asked about an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from .._check import check_choice, check_share
from .._columns import strong_at
from .._protocols import ImportanceScorer, Observer
from .._repr import constructor_repr
from .._step import Step
from .._types import TEXT, Array, CacheView, Column, Scores
from ._common import Heads, asked, over_heads

__all__ = ["PostImageMass"]


@final
@dataclass(frozen=True, slots=True)
class PostImageMass(ImportanceScorer, Observer):
    """The attention a row has received from the queries after the last image: ``s_j = sum over those i of A[i, j]``.

    All queries count where there is no image; where another one arrives the sum starts anew. Columns: ``after_image``
    (that sum), ``strong`` (how many of these queries paid the row at least ``threshold`` of the most that they paid to
    any) and ``asked_after`` (how many see the row), from which `BySparsity` measures a layer.
    Source: VL-Cache (arXiv 2410.23317, section 4).

    Args:
        heads: ``"each"`` scores every key/value head by itself (mean over the query heads that share it);
            ``"mean"`` gives all heads of a layer the same score, the mean over heads.
        threshold: share of a query's largest attention that counts as strong.

    Raises:
        PolicyError: if an argument is out of range.
    """

    heads: Heads = "each"
    threshold: float = 0.01

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_choice("PostImageMass", "heads", self.heads, ("each", "mean"))
        check_share("PostImageMass", "threshold", self.threshold)

    @property
    def alike_heads(self) -> bool:
        """With the mean over heads."""
        return self.heads == "mean"

    @property
    def columns(self) -> tuple[str, ...]:
        """What `observe` gives."""
        return ("after_image", strong_at(self.threshold), "asked_after")

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        """Add this pass to the columns, or start them anew.

        Raises:
            MissingColumnError: if nothing says which rows are image.
        """
        xp = view.xp
        hint = "pass inputs= to PolicyCache, or segments=."
        image = view.valid & (view.column("segment", needed_by="PostImageMass", hint=hint) != TEXT)
        # Of the heads here: image rows of this pass are in all heads, and earlier ones lie before all of its queries.
        last = xp.max(xp.where(image, view.positions, xp.full_like(view.positions, -1)), axis=(1, 2))
        counted = step.query_valid & (step.query_positions > last[:, None])
        weights = xp.astype(counted, xp.float32)
        mass = step.ops.attention_mass(view, step, weights=weights)
        strong = step.ops.attention_mass(view, step, weights=weights, above=self.threshold)
        seen = xp.astype(asked(view, step, counted), mass.dtype)
        anew = (last >= xp.min(step.query_positions, axis=-1))[:, None, None]  # an image row came in this pass

        def added(name: str, new: Array) -> Array:
            if name not in view.columns:
                return new
            known = view.columns[name].data
            return xp.where(anew, xp.zeros_like(known), known) + new

        return {
            "after_image": Column(added("after_image", mass), on_merge="sum"),
            strong_at(self.threshold): Column(added(strong_at(self.threshold), strong)),
            "asked_after": Column(added("asked_after", seen)),
        }

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """The sum, reduced over heads as asked."""
        return over_heads(view, view.column("after_image", needed_by="PostImageMass"), self.heads, step)
