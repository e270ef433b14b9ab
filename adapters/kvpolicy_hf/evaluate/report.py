"""The report of an evaluation: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .chance import no_better_than_chance
from .definitions import ALL, BASELINE, METRICS
from .errors import EvaluationError
from .measured import arm_name
from .report_examples import choose_examples
from .report_tables import headline, task_tables
from .summary import pareto

__all__ = ["write_report"]

TEMPLATE = Path(__file__).with_name("report.html.jinja")
PNG = b"\x89PNG"


def write_report(
    path: str | Path,
    *,
    title: str,
    rows: pl.DataFrame,
    summary: pl.DataFrame,
    provenance: Mapping[str, str],
    pictures: Sequence[tuple[str, bytes]] = (),
    notes: Sequence[str] = (),
    examples: int = 6,
) -> None:
    """Write the report.

    It opens without a network, follows the reader's light or dark setting, and escapes whatever the model said.

    Args:
        path: the file; an old one is replaced.
        title: of the report.
        rows: as `summarise` takes them, with ``said`` and ``answer``.
        summary: of these rows.
        provenance: what was run and on what: names and values, in the order in which they are shown; the first sixteen
            are seen at once.
        pictures: captions and PNGs, as `draw_charts` makes them; the caption is also what screen readers say.
        notes: what stands under the first table, as `notes_of` makes it.
        examples: how many samples are shown with everyone's answers, spread evenly over tasks that generate text.

    Raises:
        EvaluationError: if a picture is no PNG, or the summary has no quality over all tasks.
    """
    for caption, data in pictures:
        if not data.startswith(PNG):
            raise EvaluationError(f"the picture {caption!r} is no PNG. Hint: charts.png(figure) gives one.")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE.name).render(
        title=title,
        size=_size(rows),
        provenance=list(provenance.items()),
        headline=headline(summary, no_better_than_chance(rows, pareto(summary))),
        incomplete=_incomplete(summary),
        notes=notes,
        pictures=[(caption, base64.b64encode(data).decode("ascii")) for caption, data in pictures],
        tables=task_tables(summary),
        examples=choose_examples(rows, examples),
        metrics=[metric for metric in METRICS.values() if metric.name in summary["metric"].unique()],
    )
    Path(path).write_text(page, encoding="utf-8")


def _size(rows: pl.DataFrame) -> str:
    """``21 policies, 6 tasks, 1,200 samples``, the full cache not counted."""
    policies = rows.filter(pl.col("policy") != BASELINE)["policy"].n_unique()
    counts = ("policy", "policies", policies), ("task", "tasks", rows["task"].n_unique())
    samples = "sample", "samples", rows.select("task", "sample").n_unique()
    return ", ".join(f"{count:,} {one if count == 1 else many}" for one, many, count in (*counts, samples))


def _incomplete(summary: pl.DataFrame) -> list[str]:
    """The arms that lack a task, and so are not in the mean."""
    quality = summary.filter(pl.col("metric") == "quality")
    whole = quality.filter(pl.col("task") == ALL)
    lacking = quality.join(whole, on=["policy", "keep"], how="anti", nulls_equal=True)
    return [
        arm_name(policy, keep) for policy, keep in lacking.select("policy", "keep").unique(maintain_order=True).rows()
    ]
