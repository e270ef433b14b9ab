"""The arms of a summary at one budget."""

from __future__ import annotations

import polars as pl

from .definitions import BASELINE
from .errors import EvaluationError
from .texts import short

__all__ = ["at_budget"]


def at_budget(summary: pl.DataFrame, keep: float | None, metric: str) -> pl.DataFrame:
    """The rows of a metric for the policies at this budget and for those that bring their own.

    Without ``full``. The column ``name`` is the policy's label as charts show it, with ``(own budget)`` where it is.

    Raises:
        EvaluationError: if no policy was run at this budget, or none of these has the metric.
    """
    rest = summary.filter(pl.col("policy") != BASELINE)
    if rest.filter(pl.col("keep").eq_missing(keep)).is_empty():
        budgets = ", ".join(map(str, rest["keep"].unique(maintain_order=True)))
        raise EvaluationError(
            f"keep={keep}: no policy was run at this budget. Hint: the budgets are {budgets or 'none'}."
        )
    found = rest.filter(pl.col("metric") == metric, pl.col("keep").is_null() | pl.col("keep").eq_missing(keep))
    if found.is_empty():
        raise EvaluationError(f"no policy at keep={keep} has {metric!r}.")
    own = pl.when(pl.col("keep").is_null()).then(pl.lit(" (own budget)")).otherwise(pl.lit(""))
    return found.with_columns(name=pl.col("policy").map_elements(short, return_dtype=pl.String) + own)
