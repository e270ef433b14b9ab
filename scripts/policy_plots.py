"""The plots of the pages of policies: quality against bytes, one recipe in colour and all others in grey."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import polars as pl
from scripts.svg import Drawing

__all__ = ["plot"]

WIDTH, HEIGHT = 480, 350
LEFT, RIGHT, TOP, BOTTOM = 54.0, 18.0, 68.0, 46.0
BASELINE = "full"

Place: TypeAlias = Callable[[float, float], tuple[float, float]]


def plot(quality: pl.DataFrame, policy: str, title: str) -> str | None:
    """The SVG, or None where the policy was not measured.

    Args:
        quality: of all tasks together, the recipes with ``kept, value, low, high``.
        policy: the one in colour.
        title: what was measured.
    """
    if policy not in quality["policy"]:
        return None
    measured = quality.filter(pl.col("policy") != BASELINE)
    right = math.ceil(10 * measured["kept"].max()) / 10
    drawing = Drawing(
        WIDTH,
        HEIGHT,
        f"{policy}: quality against bytes",
        f"{title}. Each line is a recipe over its budgets; {policy} is in colour, with 95% intervals.",
    )
    drawing.text(16, 25, title, "b")

    def place(kept: float, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * kept / right
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(value, 0.0), 1.0))

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, share)
        drawing.line("rule", (LEFT, y), (WIDTH - RIGHT, y))
        drawing.text(LEFT - 8, y + 4, f"{share:g}", "s e")
    ticks = 5 if right <= 0.5 else round(10 * right)
    for tick in range(ticks + 1):
        x, bottom = place(right * tick / ticks, 0)
        drawing.text(x, bottom + 18, f"{right * tick / ticks:.0%}", "s m")
    drawing.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 9, "share of the full cache's bytes that is held", "s m")
    drawing.text(17, (TOP + HEIGHT - BOTTOM) / 2, "quality", "s m", turn=True)
    for value in quality.filter(pl.col("policy") == BASELINE)["value"]:
        drawing.line("dash", place(0, value), place(right, value))
    for name in measured["policy"].unique(maintain_order=True):
        if name != policy:
            _series(drawing, measured, name, place, "grey", 1.6)
    if policy != BASELINE:
        _series(drawing, measured, policy, place, "own", 4)
    _key(drawing, policy)
    return str(drawing)


def _series(drawing: Drawing, measured: pl.DataFrame, name: str, place: Place, look: str, radius: float) -> None:
    """A line over budgets, with a bar at each for the interval."""
    rows = measured.filter(pl.col("policy") == name).sort("kept").select("kept", "value", "low", "high").rows()
    if len(rows) > 1:
        drawing.line(look, *(place(kept, value) for kept, value, _, _ in rows))
    for kept, value, low, high in rows:
        drawing.line(look, place(kept, low), place(kept, high))
        drawing.dot(f"{look}dot", *place(kept, value), radius)


def _key(drawing: Drawing, policy: str) -> None:
    """What the colours mean."""
    entries = [("dash", "full cache", "s"), ("grey", "other recipes", "s")]
    if policy != BASELINE:
        entries.insert(0, ("own", policy, "s owntext"))
    x, y = LEFT, 48.0
    for look, words, style in entries:
        drawing.line(look, (x, y), (x + 22, y))
        drawing.text(x + 28, y + 4, words, style)
        x += 48 + 7.2 * len(words)
