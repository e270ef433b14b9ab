"""How numbers and moments read in a picture, in which everything is counted from 1."""

from __future__ import annotations

from .history import History

__all__ = ["moment", "number", "ticks"]


def number(value: float) -> str:
    """``36`` or ``36.5``."""
    return f"{value:.1f}".removesuffix(".0")


def ticks(count: int, most: int = 8) -> tuple[list[int], list[str]]:
    """Where the first and then round numbers of ``count`` things stand, counted from 0, and how they read."""
    steps = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    step = next(step for step in steps if count <= step * most)
    shown = sorted({0, *range(step - 1, count, step)})
    return shown, [str(tick + 1) for tick in shown]


def moment(history: History, end: int) -> str:
    """``after the prompt``, or after how many tokens more."""
    if history.prompt is None or end < history.prompt:
        return f"after {end} tokens"
    more = end - history.prompt
    return "after the prompt" if not more else f"after the prompt and {more} new token{'s'[: more > 1]}"
