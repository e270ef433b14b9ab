"""Plain eviction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from .._plan import Plan, Scored, Selection
from .._protocols import Merger
from .._repr import constructor_repr
from .._step import Step

__all__ = ["Drop"]


@final
@dataclass(frozen=True, slots=True)
class Drop(Merger):
    """Rows that are not kept are gone."""

    alike_heads: ClassVar[bool] = True

    __repr__ = constructor_repr

    def merge(self, scored: Scored, selection: Selection, step: Step, /) -> Plan:
        """A plan that only keeps."""
        return Plan(keep=selection.keep)
