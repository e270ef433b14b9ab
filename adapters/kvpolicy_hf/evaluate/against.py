"""Sums over groups made into the table of a summary: values, intervals, differences to one of the arms."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from .definitions import ALL, Metric
from .intervals import Sums, intervals
from .measured import pair, sum_groups

__all__ = ["COLUMNS", "DIFFERENCE", "VALUE", "against"]

VALUE = "value", "low", "high"
DIFFERENCE = "difference", "difference_low", "difference_high"
COLUMNS = ("task", "policy", "keep", "metric", "samples", "groups", *VALUE, *DIFFERENCE, "kept")


def against(
    baseline: int, measured: pl.DataFrame, arms: pl.DataFrame, metrics: Iterable[Metric], resamples: int, seed: int
) -> pl.DataFrame:
    """The summary of what `measure` gave, with differences to one of the arms."""
    is_baseline = pl.col("arm") == baseline
    sums = sum_groups(measured)
    paired = sum_groups(pair(measured.filter(~is_baseline), measured.filter(is_baseline)))
    tasks = [*measured["task"].unique(maintain_order=True), ALL]
    parts = []
    for order, metric in enumerate(metrics):
        ours, both = (part.filter(pl.col("metric") == metric.name) for part in (sums, paired))
        if ours.is_empty():
            continue
        count = ours["task"].n_unique()
        for place, task in enumerate(tasks):
            scope = _scope(ours, task, count)
            values = _estimate(scope, metric, VALUE, resamples, seed).join(_sizes(scope), on="arm")
            differences = _estimate(_scope(both, task, count), metric, DIFFERENCE, resamples, seed)
            part = values.join(differences, on="arm", how="left")
            names = {"task": pl.lit(task), "metric": pl.lit(metric.name)}
            parts.append(part.with_columns(**names, place=pl.lit(place), order=pl.lit(order)))
    return pl.concat(parts).join(arms, on="arm").sort("place", "arm", "order").select(COLUMNS)


def _scope(sums: pl.DataFrame, task: str, count: int) -> pl.DataFrame:
    """The sums of one task; for ``"all"`` those of the arms that have all of so many tasks."""
    if task == ALL:
        return sums.filter(pl.col("task").n_unique().over("arm") == count)
    return sums.filter(pl.col("task") == task)


def _estimate(
    scope: pl.DataFrame, metric: Metric, names: tuple[str, str, str], resamples: int, seed: int
) -> pl.DataFrame:
    """Columns ``arm`` and the names, of values and intervals; of differences, where the scope has sums of another."""
    arms, row = np.unique(scope["arm"].to_numpy(), return_inverse=True)
    cells, first, column = np.unique(scope["cell"].to_numpy(), return_index=True, return_inverse=True)

    def laid_out(name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        table = np.zeros((len(arms), len(cells)))
        table[row, column] = scope[name].to_numpy()
        return table

    ours = Sums(laid_out("top"), laid_out("base"))
    minus = Sums(laid_out("other_top"), laid_out("other_base")) if "other_top" in scope.columns else None
    strata = scope["stratum"].to_numpy()[first]
    found = intervals(ours, strata, minus=minus, ratio=metric.ratio, resamples=resamples, seed=seed)
    return pl.DataFrame({"arm": arms, **dict(zip(names, (found.value, found.low, found.high), strict=True))})


def _sizes(scope: pl.DataFrame) -> pl.DataFrame:
    """Columns ``arm, samples, groups, kept``."""
    groups = pl.col("group").n_unique()
    tasks = scope.group_by("arm", "task").agg(
        samples=pl.col("samples").sum(),
        groups=pl.when(groups > 1).then(groups).otherwise(0),
        kept=pl.col("kv_bytes").sum() / pl.col("full_kv_bytes").sum(),
    )
    return tasks.group_by("arm").agg(pl.col("samples", "groups").sum().cast(pl.Int64), pl.col("kept").mean())
