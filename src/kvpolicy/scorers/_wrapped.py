"""The faces of a scorer, seen through another that wraps it."""

from __future__ import annotations

from collections.abc import Mapping

from .._protocols import ImportanceScorer, Observer
from .._step import Step
from .._types import CacheView, Column

__all__ = ["alike_heads", "columns_of", "needs_rotate", "observed_by", "window_of"]


def observed_by(scorer: object, view: CacheView, step: Step) -> Mapping[str, Column]:
    """What it observes; nothing where it is no `Observer`."""
    return scorer.observe(view, step) if isinstance(scorer, Observer) else {}


def columns_of(scorer: ImportanceScorer) -> tuple[str, ...] | None:
    """The columns that it observes; None where it does not say."""
    named: tuple[str, ...] | None = getattr(scorer, "columns", None if isinstance(scorer, Observer) else ())
    return named


def window_of(scorer: ImportanceScorer) -> int:
    """How many of the latest queries it wants."""
    # Not by isinstance(scorer, Windowed), which on Python 3.11 reads it too: wrappers in wrappers would never end.
    window: int = getattr(scorer, "window", 1)
    return window


def alike_heads(scorer: ImportanceScorer) -> bool:
    """Whether it scores heads that hold the same tokens alike."""
    return bool(getattr(scorer, "alike_heads", False))


def needs_rotate(scorer: ImportanceScorer) -> bool:
    """Whether it needs `Step.rotate`."""
    return bool(getattr(scorer, "needs_rotate", False))
