"""An evaluation as files: tidy tables, charts, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import polars as pl

from .arms import Arm
from .charts import draw_charts
from .folder import folder_at
from .notes import notes_of
from .report import write_report
from .run import Evaluation
from .summary import summarise

__all__ = ["write"]


def write(
    result: Evaluation,
    out: str | Path,
    *,
    highlight: Sequence[str] = (),
    retained: Sequence[tuple[str, bytes]] = (),
) -> pl.DataFrame:
    """Write what `kvpolicy eval` writes: ``rows.csv``, ``rows.parquet``, ``summary.csv``, charts and ``report.html``.

    Args:
        result: what was measured.
        out: a folder, which is made where there is none. Files of these names in it are replaced.
        highlight: policies that stand out in charts; with none, those that nothing beats.
        retained: further pictures, PNGs with their captions; the command's are of what policies keep of one prompt.

    Returns:
        The summary.

    Raises:
        EvaluationError: if there can be no such folder.
    """
    folder = folder_at(out)
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
        notes=notes_of(result.rows, summary, result.arms),
        provenance={
            **result.conditions,
            "date": str(date.today()),
            **{f"task {name}": repr(task) for name, task in result.tasks.items()},
            **{_title(arm): repr(arm.policy) for arm in result.arms},
            **failures,
        },
        pictures=pictures,
    )
    return summary


def _title(arm: Arm) -> str:
    return f"policy {arm.label}" + ("" if arm.keep is None else f", keep {arm.keep:g}")
