"""The charts of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from .definitions import ALL, BASELINE, METRICS
from .drawing import png
from .forest import differences
from .heatmap import by_task
from .lines import quality_against_bytes
from .texts import at_text

__all__ = ["by_task", "differences", "draw_charts", "png", "quality_against_bytes"]


def draw_charts(summary: pl.DataFrame, *, highlight: Sequence[str] = ()) -> list[tuple[str, bytes]]:
    """Every chart as a caption and a PNG, as `write_report` takes them.

    Quality, and perplexity where it was measured, against the bytes kept; then, for each budget, the differences to
    ``full`` and quality by task. What no policy has over all tasks is left out; of ``full`` alone there is no chart.

    Args:
        summary: of `summarise`.
        highlight: policies that stand out, as in `quality_against_bytes`; those without a value are passed over, since
            they may be the ones that could not be measured.
    """
    others = summary.filter(pl.col("policy") != BASELINE)
    if others.is_empty():
        return []
    drawn = []
    of_all = summary.filter(pl.col("task") == ALL)
    for name in ("quality", "perplexity"):
        found = of_all.filter(pl.col("metric") == name)["policy"]
        if not found.is_empty():
            figure = quality_against_bytes(summary, name, highlight=[one for one in highlight if one in found])
            drawn.append((f"{METRICS[name].title.capitalize()} against the share of K/V bytes kept", png(figure)))
    budgets = others.filter(pl.col("metric") == "quality")["keep"].unique(maintain_order=True).to_list()
    for keep in [one for one in budgets if one is not None] or budgets:
        at = pl.col("keep").eq_missing(keep)
        if not of_all.filter(at, pl.col("metric") == "quality", pl.col("difference").is_not_null()).is_empty():
            drawn.append((f"Difference to the full cache {at_text(keep)}", png(differences(summary, keep))))
        drawn.append((f"Quality by task {at_text(keep)}", png(by_task(summary, keep))))
    return drawn
