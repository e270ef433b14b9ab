"""What the sections of `docs/performance.md` are made of: arms that were timed, tables, headings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from scripts.page import table

__all__ = ["Arm", "Found", "arms", "figures", "ratio", "section", "span"]

Arm: TypeAlias = dict[str, Any]
Found: TypeAlias = dict[str, dict[str, Any]]  # what each suite's files hold, by suite


def arms(found: Found, suite: str, case: str) -> list[Arm]:
    """Those of one kind of case that were timed."""
    return [arm for arm in found.get(suite, {}).get("arms", []) if arm["case"] == case and "ms" in arm]


def ratio(one: float | None, other: float | None) -> float | None:
    """None if either was not measured."""
    return None if one is None or other is None else one / other


def span(times: dict[str, float], digits: int = 2) -> str:
    """Milliseconds, with the fastest and the slowest."""
    median, least, most = (f"{times[which]:.{digits}f}" for which in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def figures(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names what the others measure, if anything was."""
    rows = list(rows)
    return table(head, rows, words=1) + "\n" if rows else ""


def section(title: str, *parts: str) -> str:
    """With its heading, if there is anything in it."""
    return "\n".join([f"## {title}\n", *(part for part in parts if part)]) if any(parts) else ""
