"""Scores from all the attention that rows have received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from .._check import check_choice, check_share
from .._errors import PolicyError
from .._protocols import ImportanceScorer, Observer
from .._repr import constructor_repr
from .._step import Step
from .._types import Array, CacheView, Column, Scores
from ._common import Heads, asked, over_heads

__all__ = ["AttentionMass"]


@final
@dataclass(frozen=True, slots=True)
class AttentionMass(ImportanceScorer, Observer):
    """The attention ``A[i, j]`` a row has received from every query i that was observed.

    ``"sum"``: ``s_j = sum_i A[i, j]``. ``"mean"``: that divided by the number of queries at or after the row.
    ``"moving"``: each query in turn makes ``s_j <- decay * s_j + (1 - decay) * A[i, j]``, from 0.

    The statistic is kept in columns (``mass``; ``mass`` and ``asked``; ``moving``) and moves with its row, so it goes
    on through chunks, decode steps and turns. Sources: H2O (arXiv 2306.14048, section 4), Elastic Cache (arXiv
    2407.18121, equation 3 and the ablation of its score).

    Args:
        heads: ``"each"`` scores every key/value head by itself (mean over the query heads that share it);
            ``"mean"`` gives all heads of a layer the same score, the mean over heads.
        reduce: how the queries become one number.
        decay: how much of a moving average one query leaves, in [0, 1).

    Raises:
        PolicyError: if an argument is out of range.
    """

    heads: Heads = "each"
    reduce: Literal["sum", "mean", "moving"] = "sum"
    decay: float = 0.9

    reads_vectors: ClassVar[bool] = False

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_choice("AttentionMass", "heads", self.heads, ("each", "mean"))
        check_choice("AttentionMass", "reduce", self.reduce, ("sum", "mean", "moving"))
        check_share("AttentionMass", "decay", self.decay, zero=True)
        if self.decay == 1:
            raise PolicyError(f"AttentionMass(decay={self.decay!r}): an average that nothing moves. Hint: decay=0.9.")

    @property
    def alike_heads(self) -> bool:
        """With the mean over heads."""
        return self.heads == "mean"

    @property
    def columns(self) -> tuple[str, ...]:
        """What `observe` gives."""
        return {"sum": ("mass",), "mean": ("mass", "asked"), "moving": (self._moving,)}[self.reduce]

    @property
    def _moving(self) -> str:
        """Another decay is another column, so that two such scorers in one policy do not meet in it."""
        return f"moving@{self.decay:g}"

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        """Add this pass to the columns."""
        if self.reduce == "moving":
            return {self._moving: Column(self._moved(view, step), on_merge="sum")}
        mass = step.ops.attention_mass(view, step)
        columns = {"mass": Column(_added(view, "mass", mass), on_merge="sum")}
        if self.reduce == "mean":
            new = view.xp.astype(asked(view, step, step.query_valid), mass.dtype)
            columns["asked"] = Column(_added(view, "asked", new))
        return columns

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """The statistic, reduced over heads as asked."""
        xp = view.xp
        if self.reduce == "moving":
            scores = view.column(self._moving, needed_by="AttentionMass(reduce='moving')")
        else:
            scores = view.column("mass", needed_by="AttentionMass")
        if self.reduce == "mean":
            queries = view.column("asked", needed_by="AttentionMass(reduce='mean')")
            scores = scores / xp.where(queries > 0, queries, xp.ones_like(queries))
        return over_heads(view, scores, self.heads, step)

    def _moved(self, view: CacheView, step: Step) -> Array:
        """The recurrence over n queries at once: ``decay^n * s + sum_i (1 - decay) * decay^(n - 1 - i) * A[i]``."""
        xp = view.xp
        valid = xp.astype(step.query_valid, xp.int64)
        total = xp.sum(valid, axis=-1, keepdims=True)
        later = total - xp.cumulative_sum(valid, axis=-1)  # valid queries after each
        dtype = xp.float64 if step.queries.dtype == xp.float64 else xp.float32
        new = step.ops.attention_mass(view, step, weights=(1 - self.decay) * self.decay ** xp.astype(later, dtype))
        left = xp.astype(self.decay ** xp.astype(total, dtype), new.dtype)
        known = view.columns.get(self._moving)
        return new if known is None else left[:, :, None] * known.data + new


def _added(view: CacheView, name: str, new: Array) -> Array:
    """To a column as it stands; by itself where the table does not carry it yet."""
    return view.columns[name].data + new if name in view.columns else new
