"""The tables of the report: what stands in each cell, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import polars as pl

from .against import DIFFERENCE
from .definitions import ALL, BASELINE, METRICS, Metric
from .summary import pareto
from .texts import budget_text, difference_text, interval_text, value_text

__all__ = ["Cell", "Table", "headline", "task_tables"]

NARROW = "perplexity", "rouge", "seconds"  # of the headline, beside quality

Arm: TypeAlias = tuple[str, "float | None"]
Row: TypeAlias = Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: what is read.
        order: what it is sorted by; None: after all others.
        interval: what stands beside the text, smaller.
        note: a second line.
        mark: ``"better"``, ``"worse"``, ``"undecided"`` or ``"front"``; empty: none.
    """

    text: str
    order: float | str | None
    interval: str = ""
    note: str = ""
    mark: str = ""


NOTHING = Cell("", None)


@final
@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first columns name an arm.

    Attributes:
        caption: what it is.
        columns: the titles; those after the first are numbers.
        rows: the cells of each row.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def headline(summary: pl.DataFrame, unmarked: Collection[Arm] = ()) -> Table:
    """The means over tasks: quality, its difference to ``full``, bytes, perplexity, ROUGE-L and time of every arm.

    Args:
        summary: of `summarise`.
        unmarked: arms that are not marked as being on the front, though they may be.

    Raises:
        EvaluationError: if there is no quality over all tasks.
    """
    of_all = summary.filter(pl.col("task") == ALL)
    front = set(pareto(summary).select("policy", "keep").rows()).difference(unmarked)
    shown = [METRICS[name] for name in NARROW if name in of_all["metric"].unique()]
    quality = METRICS["quality"]
    rows = []
    for (policy, keep), found in _by_arm(of_all):
        name = Cell(policy, policy, mark="front" if (policy, keep) in front else "")
        numbers = [_value(quality, found.get("quality")), _difference(quality, found.get("quality"))]
        rest = [_value(metric, found.get(metric.name), interval=False) for metric in shown]
        rows.append([name, _budget(keep), *numbers, _kept(found), *rest])
    titles = [metric.title for metric in shown]
    columns = ["policy", "budget", "quality", "difference to full", "bytes kept", *titles]
    return Table("Means over tasks", columns, rows)


def task_tables(summary: pl.DataFrame) -> list[Table]:
    """All metrics of every arm: a table of the means over tasks, then one for each task."""
    made = []
    for task in (ALL, *(task for task in summary["task"].unique(maintain_order=True) if task != ALL)):
        of_task = summary.filter(pl.col("task") == task)
        shown = [metric for metric in METRICS.values() if metric.name in of_task["metric"].unique()]
        rows = []
        for (policy, keep), found in _by_arm(of_task):
            samples = max(row["samples"] for row in found.values())
            cells = [_value(metric, found.get(metric.name), difference=True) for metric in shown]
            rows.append(
                [Cell(policy, policy), _budget(keep), Cell(f"{samples:,}", samples), _kept(found), *cells],
            )
        columns = ["policy", "budget", "samples", "bytes kept", *(metric.title for metric in shown)]
        made.append(Table("Means over tasks" if task == ALL else task, columns, rows))
    return made


def _by_arm(found: pl.DataFrame) -> list[tuple[Arm, Mapping[str, Row]]]:
    """The rows of each arm by metric: ``full`` first, then by budget, own ones last, the best quality first in each."""
    arms: dict[Arm, dict[str, Row]] = {}
    for row in found.iter_rows(named=True):
        arms.setdefault((row["policy"], row["keep"]), {})[row["metric"]] = row

    def order(item: tuple[Arm, Mapping[str, Row]]) -> tuple[bool, float, float]:
        (policy, keep), metrics = item
        quality = metrics["quality"]["value"] if "quality" in metrics else 0.0
        return policy != BASELINE, -(keep or 0.0), -quality

    return sorted(arms.items(), key=order)


def _value(metric: Metric, row: Row | None, *, interval: bool = True, difference: bool = False) -> Cell:
    if row is None:
        return NOTHING
    ends = interval_text(metric, row["low"], row["high"]) if interval else ""
    note = _difference(metric, row)
    return Cell(
        value_text(metric, row["value"]),
        row["value"],
        ends,
        f"{note.text} {note.interval}" if difference and note.text else "",
        note.mark if difference else "",
    )


def _difference(metric: Metric, row: Row | None) -> Cell:
    if row is None or row["difference"] is None:
        return NOTHING
    value, low, high = (row[name] for name in DIFFERENCE)
    interval = interval_text(metric, low, high, difference=True)
    return Cell(difference_text(metric, value), value, interval, mark=metric.verdict(row["groups"], low, high))


def _budget(keep: float | None) -> Cell:
    return Cell(budget_text(keep), keep)


def _kept(found: Mapping[str, Row]) -> Cell:
    kept = next(iter(found.values()))["kept"]
    return Cell(f"{100 * kept:.1f}%", kept)
