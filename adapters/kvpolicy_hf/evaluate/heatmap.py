"""Draw a metric of every policy on every task at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from .chosen import at_budget
from .definitions import ALL, BASELINE, Metric, metric_of
from .drawing import BACKGROUND, EDGE, INK, WIDTH, Page
from .texts import at_text, short, value_text

__all__ = ["by_task"]

HEAD, LINE, FOOT, LABELS, GAP = 1.25, 0.3, 0.3, 3.5, 0.2  # inches
WIDEST, LETTER, SLANT = 1.35, 0.085, 0.06  # a cell; a letter; a slanted letter
MAP = "Blues"  # light to dark, which every reader can order


def by_task(summary: pl.DataFrame, keep: float | None, metric: str = "quality") -> Figure:
    """A heatmap: policies by tasks with the number in every cell, the mean over tasks first, and the best on top.

    ``full`` is the first row; policies with a budget of their own are there at every budget.

    Args:
        summary: of `summarise`.
        keep: the budget; None: only policies with a budget of their own.
        metric: a name of `METRICS`.

    Raises:
        EvaluationError: for a metric or budget that the summary does not have.
    """
    chosen = metric_of(metric)
    found = at_budget(summary, keep, metric)
    full = summary.filter(pl.col("policy") == BASELINE, pl.col("metric") == metric).with_columns(name=pl.lit(BASELINE))
    ranked = found.sort(
        pl.col("task") != ALL, chosen.better * pl.col("value"), descending=[False, True], maintain_order=True
    )
    lines = pl.concat([full, ranked]).select("policy", "keep", "name").unique(maintain_order=True).rows()
    tasks = [task for task in found["task"].unique(maintain_order=True) if task != ALL]
    cells = pl.concat([full, found]).select("policy", "keep", "task", "value").rows()
    values = {(policy, budget, task): value for policy, budget, task, value in cells}
    room = WIDTH - 2 * EDGE - LABELS - GAP
    longest = max(len(short(task)) for task in tasks)
    slanted = longest * LETTER > min(room / (len(tasks) + 1), WIDEST)
    slant = SLANT * longest if slanted else 0.0  # as far to the right as upwards
    wide = min((room - slant / 2) / (len(tasks) + 1), WIDEST)
    head = HEAD + slant - (0.3 if slanted else 0.0)
    page = Page(
        head + LINE * len(lines) + FOOT,
        f"{chosen.title[0].upper()}{chosen.title[1:]} by task {at_text(keep)}",
        "the darker, the better" if chosen.better > 0 else "the darker, the better; lower is better",
    )
    scale = _scale(chosen, list(values.values()))
    left = EDGE + LABELS
    for columns in ([ALL], tasks):
        axes = page.axes(left, head, wide * len(columns), LINE * len(lines))
        table = np.array([[values.get((*line[:2], task), np.nan) for task in columns] for line in lines])
        _cells(axes, table, chosen, scale, min(9.5, 15 * wide))
        titles = ["mean" if task == ALL else short(task) for task in columns]
        style = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if slanted and columns == tasks else {}
        axes.set_xticks(range(len(columns)), titles, fontsize=9.5, color=INK, parse_math=False, **style)
        axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, pad=4)
        if columns == [ALL]:
            axes.set_yticks(range(len(lines)), [name for *_, name in lines], fontsize=9.5, color=INK, parse_math=False)
            axes.tick_params(axis="y", pad=8)
        else:
            axes.set_yticks([])
        left += wide + GAP
    return page.figure


def _scale(metric: Metric, values: Sequence[float]) -> Normalize:
    """What is drawn from one end of the colours to the other: all of a share's range, else the values that occur."""
    if metric.share:
        return Normalize(0, 1, clip=True)
    return (LogNorm if metric.ratio else Normalize)(min(values), max(values))


def _cells(axes: Any, table: np.ndarray[Any, Any], metric: Metric, scale: Normalize, size: float) -> None:
    """Colours and numbers; a cell without a value is blank."""
    shades = np.ma.filled(scale(np.ma.masked_invalid(table)), np.nan)
    if metric.better < 0:
        shades = 1 - shades
    colours = colormaps[MAP](0.03 + 0.87 * shades)
    axes.imshow(np.where(np.isnan(shades)[..., None], 1.0, colours), aspect="auto", interpolation="nearest")
    for row, column in zip(*np.nonzero(~np.isnan(shades)), strict=True):
        ink = BACKGROUND if shades[row, column] > 0.75 else INK
        text = value_text(metric, float(table[row, column]))
        axes.text(column, row, text, fontsize=size, color=ink, ha="center", va="center_baseline")
    for grid, count in (("x", table.shape[1]), ("y", table.shape[0])):
        getattr(axes, f"set_{grid}ticks")(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color=BACKGROUND, linewidth=2)
    axes.tick_params(which="minor", length=0)
