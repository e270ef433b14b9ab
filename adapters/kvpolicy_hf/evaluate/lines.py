"""Draw a metric against the bytes that are kept: a line per policy over its budgets, a panel per task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

from .definitions import ALL, BASELINE, Metric, metric_of
from .drawing import COLOURS, EDGE, FAINT, GREY, INK, MARKERS, RULE, WIDTH, Page
from .errors import EvaluationError
from .summary import pareto
from .texts import short

__all__ = ["quality_against_bytes"]

HEAD, MAIN, FOOT, LABELS, LINE = 1.3, 4.4, 0.55, 3.1, 0.175  # inches
COLUMNS, PANEL, GUTTER, TITLE = 3, 2.3, 0.55, 0.45
FRONT = "#f0e442"
FAN = 1.045  # where the names begin, in widths of the panel
MOST = len(COLOURS)  # policies that stand out, where nobody names any


@final
@dataclass(frozen=True, slots=True)
class _Look:
    """How a policy is drawn."""

    color: str
    marker: str
    width: float
    order: float


def quality_against_bytes(summary: pl.DataFrame, metric: str = "quality", *, highlight: Sequence[str] = ()) -> Figure:
    """Small multiples: the mean over tasks, with the Pareto front, then every task that has the metric.

    Bars are 95% intervals; a policy with its own budget is a point; ``full`` is a dashed line.

    Args:
        summary: of `summarise`.
        metric: a name of `METRICS`.
        highlight: policies in colour; the others are grey. None named: all, and of more than six, those on the front.

    Raises:
        EvaluationError: for a metric that the summary does not have, or a policy to highlight that it does not have.
    """
    chosen = metric_of(metric)
    found = summary.filter(pl.col("metric") == metric)
    front = pareto(summary, ALL, metric)
    looks = _looks(found, front, highlight)
    tasks = [task for task in found["task"].unique(maintain_order=True) if task != ALL]
    main = max(MAIN, LINE * (len(looks) + 1))
    columns = min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    page = Page(
        HEAD + main + FOOT + rows * (TITLE + PANEL + FOOT),
        f"{chosen.title[0].upper()}{chosen.title[1:]} against the K/V bytes that are kept",
        "a line per policy over its budgets; bars are 95% intervals; "
        + ("lower is better" if chosen.better < 0 else "higher is better"),
    )
    left = EDGE + 0.55
    axes = page.axes(left, HEAD, WIDTH - left - LABELS - EDGE, main)
    limits = _limits(found, chosen) if chosen.share else None
    of_all = found.filter(pl.col("task") == ALL)
    _panel(axes, of_all, looks, chosen, limits)
    _front(axes, front)
    _name_lines(axes, of_all, looks, gap=LINE / main)
    page.key(
        [
            Line2D(
                [], [], color=FRONT, linewidth=5, alpha=0.75, label="Pareto front: no other is better with fewer bytes"
            ),
            Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (5, 3)), label="full cache"),
        ]
    )
    axes.set_title("mean over tasks", fontsize=11, weight="bold", color=INK, loc="left", pad=8)
    wide = (WIDTH - left - EDGE - (columns - 1) * GUTTER) / columns
    for number, task in enumerate(tasks):
        row, column = divmod(number, columns)
        top = HEAD + main + FOOT + TITLE + row * (TITLE + PANEL + FOOT)
        axes = page.axes(left + column * (wide + GUTTER), top, wide, PANEL)
        _panel(axes, found.filter(pl.col("task") == task), looks, chosen, limits)
        axes.set_title(short(task), fontsize=10, weight="bold", color=INK, loc="left", pad=6, parse_math=False)
    return page.figure


def _looks(found: pl.DataFrame, front: pl.DataFrame, highlight: Sequence[str]) -> Mapping[str, _Look]:
    """How each policy but ``full`` is drawn."""
    names = [name for name in found["policy"].unique(maintain_order=True) if name != BASELINE]
    unknown = [name for name in highlight if name not in names]
    if unknown:
        raise EvaluationError(
            f"highlight names {', '.join(map(repr, unknown))}, which the summary does not have. "
            f"Hint: it has {', '.join(names) or 'no policy but full'}."
        )
    bright = list(highlight) or (names if len(names) <= MOST else _best(found, front))
    looks = {name: _Look(GREY, "o", 0.9, 2.0) for name in names}
    for number, name in enumerate(bright):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]  # colours come again with other markers
        looks[name] = _Look(colour, marker, 1.8, 3.0)
    return looks


def _best(found: pl.DataFrame, front: pl.DataFrame) -> list[str]:
    """The policies on the front that are best over all their budgets, at most six."""
    better = metric_of(found["metric"][0]).better
    chosen = found.filter(pl.col("task") == ALL, pl.col("policy").is_in(front["policy"].implode()))
    means = (
        chosen.filter(pl.col("policy") != BASELINE).group_by("policy", maintain_order=True).agg(pl.col("value").mean())
    )
    return means.sort(better * pl.col("value"), descending=True, maintain_order=True)["policy"].head(MOST).to_list()


def _limits(found: pl.DataFrame, metric: Metric) -> tuple[float, float]:
    """What the upright axis of every panel shows of shares."""
    low, high = float(found["low"].to_numpy().min()), float(found["high"].to_numpy().max())
    pad = 0.05 * max(high - low, 0.02)
    return low - pad, high + pad


def _panel(
    axes: Any, found: pl.DataFrame, looks: Mapping[str, _Look], metric: Metric, limits: tuple[float, float] | None
) -> None:
    """The lines of one task."""
    for name, look in looks.items():
        own = found.filter(pl.col("policy") == name).sort("kept")
        if own.is_empty():
            continue
        kept, value, low, high = (own[column].to_numpy() for column in ("kept", "value", "low", "high"))
        grey = look.color == GREY
        axes.vlines(kept, low, high, color=look.color, linewidth=0.8 if grey else 1.3, alpha=0.55, zorder=look.order)
        axes.plot(
            kept,
            value,
            color=look.color,
            marker=look.marker,
            markersize=3 if grey else 5.5,
            markeredgecolor="white",
            markeredgewidth=0.3 if grey else 0.7,
            linewidth=look.width,
            zorder=look.order + 0.1,
        )
    full = found.filter(pl.col("policy") == BASELINE)
    for value in full["value"]:
        axes.axhline(value, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1.5)
    rest = found.filter(pl.col("policy") != BASELINE)["kept"].to_numpy()
    axes.set_xlim(0, 1.04 * rest.max(initial=0.0) or 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("share of K/V bytes kept", fontsize=9, color=FAINT)
    if limits is not None:
        axes.set_ylim(*limits)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        if metric.ratio:  # the exponential of a mean: equal steps of the mean are equally far apart
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(_log_ticks(found["high"].to_numpy().max() / found["low"].to_numpy().min()))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.spines["bottom"].set(visible=True, color=RULE)
    axes.set_axisbelow(True)


def _log_ticks(span: float) -> Locator:
    """Where a logarithmic axis whose ends have this ratio has its ticks."""
    if span < 5:
        return MaxNLocator(5)
    return LogLocator(subs=(1.0, 2.0, 5.0)) if span < 1000 else LogLocator(numticks=8)


def _front(axes: Any, front: pl.DataFrame) -> None:
    """A broad band through the arms that no other beats."""
    kept, value = front["kept"].to_numpy(), front["value"].to_numpy()
    axes.step(kept, value, where="post", color=FRONT, linewidth=5, alpha=0.75, solid_capstyle="round", zorder=1)


def _name_lines(axes: Any, found: pl.DataFrame, looks: Mapping[str, _Look], *, gap: float) -> None:
    """The policies' names beside the panel, as high as their lines end, moved apart where they would overlap."""
    ends = found.filter(pl.col("policy") != BASELINE).sort("kept").group_by("policy", maintain_order=True).last()
    points = {name: (kept, value) for name, kept, value in ends.select("policy", "kept", "value").rows()}
    for value in found.filter(pl.col("policy") == BASELINE)["value"]:
        points[BASELINE] = axes.get_xlim()[1], value
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted((float(to_axes.transform(point)[1]), name) for name, point in points.items())
    steps = gap * np.arange(len(placed))
    wanted = np.array([height for height, _ in placed])
    apart = np.clip(isotonic_regression(wanted - steps).x, 0.0, max(1.0 - steps[-1], 0.0)) + steps
    for (_, name), height in zip(placed, apart, strict=True):
        look = looks.get(name, _Look(INK, "", 1.0, 3.0))
        start = to_axes.transform(points[name])
        ends_at = (start[0], 1.0, FAN), (start[1], start[1], height)
        axes.plot(*ends_at, transform=axes.transAxes, clip_on=False, color=look.color, linewidth=0.6, zorder=1.8)
        grey = look.color == GREY
        axes.text(
            FAN + 0.006,
            height,
            short(name),
            transform=axes.transAxes,
            fontsize=9 if grey else 9.5,
            weight="normal" if grey else "bold",
            color=FAINT if grey else look.color,
            va="center_baseline",
            parse_math=False,
        )
