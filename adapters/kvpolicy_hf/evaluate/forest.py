"""Draw how far every policy is from the full cache at one budget: paired differences with their intervals."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from .chosen import at_budget
from .definitions import ALL, metric_of
from .drawing import BETTER, EDGE, FAINT, INK, RULE, WIDTH, WORSE, Page
from .errors import EvaluationError
from .texts import at_text, difference_text, interval_text, short, signed

__all__ = ["differences"]

HEAD, LINE, FOOT, LABELS, INTERVAL, NUMBERS = 1.3, 0.27, 0.55, 3.5, 2.0, 2.9  # inches


def differences(summary: pl.DataFrame, keep: float | None, metric: str = "quality", *, task: str = ALL) -> Figure:
    """A forest plot: each policy's paired difference to ``full`` with its 95% interval, the best on top.

    In colour where the interval excludes zero. Policies with a budget of their own are there at every budget.

    Args:
        summary: of `summarise`.
        keep: the budget; None: only policies with a budget of their own.
        metric: a name of `METRICS`.
        task: one of the summary's.

    Raises:
        EvaluationError: for a metric, budget or task that the summary does not have, or where there is no
            difference to draw.
    """
    chosen = metric_of(metric)
    found = at_budget(summary, keep, metric).filter(pl.col("task") == task, pl.col("difference").is_not_null())
    if found.is_empty():
        raise EvaluationError(f"at keep={keep} nothing has a difference to 'full' in {metric!r} on task {task!r}.")
    found = found.sort(chosen.better * pl.col("difference"), descending=True, maintain_order=True)
    unit = "percentage points" if chosen.share else "the metric's own unit"
    page = Page(
        HEAD + LINE * len(found) + FOOT,
        f"How far from the full cache {at_text(keep)}",
        f"{chosen.title}, {'mean over tasks' if task == ALL else short(task)}: difference to full on the same samples, "
        f"in {unit}, with 95% intervals",
    )
    marks = {
        "better": (BETTER, BETTER, "better than full"),
        "worse": (WORSE, WORSE, "worse"),
        "undecided": (FAINT, "white", "the interval holds zero"),
    }
    page.key(
        [
            Line2D([], [], color=edge, marker="o", markersize=6, markerfacecolor=face, linewidth=1.8, label=label)
            for edge, face, label in marks.values()
        ]
    )
    wide = WIDTH - 2 * EDGE - LABELS - NUMBERS
    axes = page.axes(EDGE + LABELS, HEAD, wide, LINE * len(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks([])

    def write(where: float, line: float, text: str, color: str) -> None:
        style = {"fontsize": 9.5, "ha": "right", "va": "center_baseline", "parse_math": False}
        axes.text(where / wide, line, text, transform=axes.get_yaxis_transform(), color=color, **style)

    write(wide + INTERVAL, -0.9, "difference and interval", FAINT)
    write(wide + NUMBERS, -0.9, "bytes kept", FAINT)
    columns = ("name", "groups", "difference", "difference_low", "difference_high", "kept")
    for number, (name, groups, value, low, high, kept) in enumerate(found.select(columns).rows()):
        edge, face, _ = marks[chosen.verdict(groups, low, high)]
        axes.plot((low, high), (number, number), color=edge, linewidth=1.8, solid_capstyle="butt")
        axes.plot(value, number, "o", color=edge, markerfacecolor=face, markersize=6)
        interval = interval_text(chosen, low, high, difference=True)
        write(-0.12, number, name, INK)
        write(wide + INTERVAL, number, f"{difference_text(chosen, value)} {interval}", INK)
        write(wide + NUMBERS, number, f"{kept:.0%}", FAINT)
    axes.axvline(0, color=INK, linewidth=1, zorder=1.5)
    axes.margins(x=0.04)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    scale = 100 if chosen.share else 1
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value * scale)))
    return page.figure
