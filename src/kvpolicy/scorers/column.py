"""Scores that the caller brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from .._check import check_choice
from .._errors import PolicyError
from .._protocols import ImportanceScorer
from .._repr import constructor_repr
from .._step import Step
from .._types import CacheView, Scores
from ._common import Heads, over_heads, wide

__all__ = ["ColumnScore"]


@final
@dataclass(frozen=True, slots=True)
class ColumnScore(ImportanceScorer):
    """A column of the table is the score: what the caller says of each token, or what another stage observes.

    Args:
        name: of the column.
        heads: ``"each"`` takes it head by head; ``"mean"`` gives all heads of a layer the same score, the mean.

    Raises:
        PolicyError: if an argument is out of range.
    """

    name: str
    heads: Heads = "each"

    reads_vectors: ClassVar[bool] = False

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        name: Any = self.name
        if not (isinstance(name, str) and name):
            raise PolicyError(f"ColumnScore(name={name!r}): name must be that of a column, such as 'count'.")
        check_choice("ColumnScore", "heads", self.heads, ("each", "mean"))

    @property
    def alike_heads(self) -> bool:
        """With the mean over heads."""
        return self.heads == "mean"

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """The column in float32 or wider.

        Raises:
            MissingColumnError: if the table does not carry it.
        """
        hint = f"bring it with the tokens, Pass(columns={{{self.name!r}: ...}}), or observe it with another scorer."
        data = view.column(self.name, needed_by=f"ColumnScore({self.name!r})", hint=hint)
        return over_heads(view, wide(view.xp, data), self.heads, step)
