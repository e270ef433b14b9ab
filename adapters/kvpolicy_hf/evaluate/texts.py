"""How numbers and arms read in charts and in the report."""

from __future__ import annotations

from .definitions import Metric

__all__ = ["at_text", "budget_text", "difference_text", "interval_text", "short", "signed", "value_text"]

MINUS = "\N{MINUS SIGN}"
LONGEST, TAIL = 30, 13  # characters of a name; of its end


def value_text(metric: Metric, value: float) -> str:
    """``73.1%`` of a share; three digits or more of anything else."""
    return f"{100 * value:.1f}%".replace("-", MINUS) if metric.share else _digits(value)


def difference_text(metric: Metric, value: float) -> str:
    """With its sign; of a share in percentage points, without a unit."""
    text = f"{100 * abs(value):.1f}" if metric.share else _digits(abs(value))
    return f"{MINUS if value < 0 else '+'}{text}" if text.strip("0.") else text


def interval_text(metric: Metric, low: float, high: float, *, difference: bool = False) -> str:
    """``[70.2, 75.9]``: both ends as they read alone, without the per cent signs."""
    one = difference_text if difference else value_text
    return f"[{one(metric, low)}, {one(metric, high)}]".replace("%", "")


def signed(value: float) -> str:
    """A number with its sign, as short as it is exact to six digits."""
    return f"{value:+g}".replace("-", MINUS) if value else "0"


def budget_text(keep: float | None) -> str:
    """``20%``; ``own`` where the policy brings its own."""
    return "own" if keep is None else f"{100 * keep:g}%"


def at_text(keep: float | None) -> str:
    """``at a budget of 20%``."""
    return "at budgets of their own" if keep is None else f"at a budget of {budget_text(keep)}"


def short(name: str) -> str:
    """A name on one line, and not longer than a label may be; a longer one keeps its ends, where variants differ."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - TAIL - 1]}…{line[-TAIL:]}"


def _digits(value: float) -> str:
    size = abs(value)
    if size >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3}f}"
