"""An evaluation as files: tidy tables, charts, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import polars as pl

from .arms import Arm
from .charts import draw_charts
from .notes import notes_of
from .report import write_report
from .run import Evaluation
from .summary import summarise
from .task import Task

__all__ = ["write"]


def write(
    result: Evaluation,
    out: str | Path,
    *,
    tasks: Mapping[str, Task],
    arms: Sequence[Arm],
    highlight: Sequence[str] = (),
    retained: Sequence[tuple[str, bytes]] = (),
) -> pl.DataFrame:
    """Write ``rows.csv``, ``rows.parquet``, ``summary.csv``, the charts as PNG and ``report.html``.

    Args:
        result: what was measured.
        out: a folder that is there.
        tasks: by name, for the report.
        arms: what was measured, likewise.
        highlight: policies that stand out in charts; with none, those that nothing beats.
        retained: further pictures with their captions, as `draw_retained` makes them.

    Returns:
        The summary.
    """
    folder = Path(out)
    result.rows.write_csv(folder / "rows.csv")
    result.rows.write_parquet(folder / "rows.parquet")
    summary = summarise(result.rows)
    summary.write_csv(folder / "summary.csv")
    pictures = [*draw_charts(summary, highlight=highlight), *retained]
    for number, (_, data) in enumerate(pictures, 1):
        (folder / f"chart-{number}.png").write_bytes(data)
    failures = {f"not measured: {label}": f"{task}: {reason}" for task, label, _, reason in result.failures}
    write_report(
        folder / "report.html",
        title=f"KV-cache policies on {result.conditions['model']}",
        rows=result.rows,
        summary=summary,
        notes=notes_of(result.rows, summary, arms),
        provenance={
            **result.conditions,
            "date": str(date.today()),
            **{f"task {name}": repr(task) for name, task in tasks.items()},
            **{_title(arm): repr(arm.policy) for arm in arms},
            **failures,
        },
        pictures=pictures,
    )
    return summary


def _title(arm: Arm) -> str:
    return f"policy {arm.label}" + ("" if arm.keep is None else f", keep {arm.keep:g}")
