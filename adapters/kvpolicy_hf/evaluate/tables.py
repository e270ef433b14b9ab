"""The evaluation on a terminal: quality over all tasks, and what could not be measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

from .definitions import ALL

__all__ = ["failures_table", "quality_table"]


def quality_table(summary: pl.DataFrame) -> Table:
    """A line per policy and budget, the best first within a budget: mean quality over tasks with its interval."""
    count = summary.filter(pl.col("metric") == "quality", pl.col("task") != ALL)["task"].n_unique()
    table = Table(
        title=Text("quality" if count == 1 else f"quality, mean of {count} tasks", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("policy", style="cyan", overflow="fold")
    for name in ("keep", "bytes", "value [95%]", "to full [95%]"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    over = summary.filter(pl.col("metric") == "quality", pl.col("task") == ALL).to_dicts()
    for row in sorted(over, key=lambda row: (-(row["keep"] or 0.0), -row["value"])):
        table.add_row(
            Text(row["policy"]),
            "own" if row["keep"] is None else f"{row['keep']:g}",
            f"{row['kept']:.0%}",
            Text(f"{row['value']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"),
            Text(
                ""
                if row["difference"] is None
                else f"{row['difference']:+.3f} [{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
            ),
        )
    return table


def failures_table(failures: Iterable[tuple[str, str, float | None, str]]) -> Table:
    """What could not be measured, and why: a line per policy and reason."""
    table = Table(title=Text("not measured", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("policy", style="cyan", no_wrap=True)
    table.add_column("tasks")
    table.add_column("reason")
    tasks: dict[tuple[str, str], list[str]] = {}
    for task, label, _, reason in failures:
        tasks.setdefault((label, reason), []).append(task)
    for (label, reason), names in tasks.items():
        unique: Any = dict.fromkeys(names)
        table.add_row(Text(label), Text(", ".join(unique)), Text(reason))
    return table
