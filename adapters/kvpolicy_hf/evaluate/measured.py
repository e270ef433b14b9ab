"""Rows of an evaluation, held to fit together, as sums that metrics divide."""

from __future__ import annotations

import polars as pl

from .definitions import ALL, BASELINE, METRICS
from .errors import EvaluationError

__all__ = ["arm_name", "check_rows", "measure", "number_arms", "pair", "sum_groups"]

KEYS = "task", "sample", "group", "policy", "keep"
BYTES = "kv_bytes", "full_kv_bytes"
COUNTS = "same", "new_tokens", "nats", "scored"
MEANS = tuple(name for name in METRICS if name not in {"same", "perplexity"})  # a column of the same name each
NUMBERS = (*MEANS, *COUNTS, *BYTES)
SHOWN = 5  # the most samples that an error names


def arm_name(policy: str, keep: float | None) -> str:
    """A policy and its budget as errors name them."""
    return f"{policy!r} at its own budget" if keep is None else f"{policy!r} at keep={keep:g}"


def check_rows(rows: pl.DataFrame) -> None:
    """Refuse rows that cannot be compared.

    Raises:
        EvaluationError: where columns are missing, keys are null or occur twice, a number is not finite, a sample has
            no ``full``, or an arm has only some samples of a task.
    """
    missing = [name for name in (*KEYS, *NUMBERS) if name not in rows.columns]
    if missing:
        raise EvaluationError(f"the rows lack the columns {', '.join(missing)}; they have: {', '.join(rows.columns)}.")
    if rows.is_empty():
        raise EvaluationError("there are no rows. Hint: run at least one sample.")
    for name in ("task", "sample", "group", "policy", *BYTES):
        if rows[name].has_nulls():
            raise EvaluationError(f"{rows[name].null_count()} rows have no {name}.")
    if (rows["task"] == ALL).any():
        raise EvaluationError(f"a task is called {ALL!r}, the name of the mean over tasks. Hint: give it another name.")
    for name in NUMBERS:
        _check_finite(rows, name)
    twice = rows.filter(rows.select("task", "sample", "policy", "keep").is_duplicated())
    if not twice.is_empty():
        task, sample, _, policy, keep = twice.select(KEYS).row(0)
        raise EvaluationError(f"{arm_name(policy, keep)} has sample {sample} of {task!r} more than once.")
    _check_complete(rows)


def _check_finite(rows: pl.DataFrame, name: str) -> None:
    broken = rows.filter(~pl.col(name).cast(pl.Float64).is_finite())
    if not broken.is_empty():
        task, sample, _, policy, keep = broken.select(KEYS).row(0)
        value = broken[name][0]
        raise EvaluationError(
            f"{name} is {value} in sample {sample} of {task!r} for {arm_name(policy, keep)}, and not finite in "
            f"{len(broken)} rows in all. Hint: null stands for a value that is not known."
        )


def _check_complete(rows: pl.DataFrame) -> None:
    """Every arm has, of each task that it has at all, the samples that ``full`` has; ``full`` has them all."""
    samples = rows.select("task", "sample").unique()
    full = rows.filter(pl.col("policy") == BASELINE)
    if full["keep"].n_unique() > 1:
        raise EvaluationError(
            f"{BASELINE!r}, the baseline, has {full['keep'].n_unique()} budgets. Hint: it keeps everything, once."
        )
    whole = full.select("task", "sample")
    lacking = samples.join(whole, on=["task", "sample"], how="anti").sort("task", "sample")
    if not lacking.is_empty():
        raise EvaluationError(f"{BASELINE!r}, the baseline, lacks {_listed(lacking)}. Hint: run it on every sample.")
    arms = rows.select("task", "policy", "keep").unique(maintain_order=True)
    held = rows.select("task", "sample", "policy", "keep")
    gaps = arms.join(samples, on="task").join(
        held, on=["task", "sample", "policy", "keep"], how="anti", nulls_equal=True
    )
    if not gaps.is_empty():
        _, policy, keep = gaps.select("task", "policy", "keep").row(0)
        own = gaps.filter(pl.col("policy") == policy, pl.col("keep").eq_missing(keep)).sort("task", "sample")
        raise EvaluationError(
            f"{arm_name(policy, keep)} lacks {_listed(own)}, so its means would be over other samples than those of "
            f"the others. Hint: run what is missing, or leave those samples or this arm out."
        )


def _listed(lacking: pl.DataFrame) -> str:
    """``sample 3 of 'needle', sample 4 of 'needle' and 7 more``."""
    names = [f"sample {sample} of {task!r}" for task, sample in lacking.select("task", "sample").rows()[:SHOWN]]
    more = len(lacking) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def number_arms(rows: pl.DataFrame) -> pl.DataFrame:
    """Columns ``policy``, ``keep`` and ``arm``, the number of each pair in its order of appearance."""
    arms = rows.select("policy", "keep").unique(maintain_order=True)
    return arms.with_columns(arm=pl.int_range(len(arms)))


def measure(rows: pl.DataFrame, arms: pl.DataFrame) -> pl.DataFrame:
    """A row per task, sample, arm and metric that has a value there.

    Columns: ``metric, task, sample, group, arm``; ``top`` and ``base``, of which the metric is the ratio of sums;
    ``kv_bytes, full_kv_bytes``. The group is that of the sample's ``full`` row; a sample whose group is empty is a
    group by itself. ``same`` is over the tokens of ``full``.
    """
    alone = pl.format("sample {}", "sample")
    whole = rows.filter(pl.col("policy") == BASELINE).select(
        "task",
        "sample",
        group=pl.when(pl.col("group") == "").then(alone).otherwise(pl.col("group")),
        tokens="new_tokens",
    )
    joined = rows.drop("group").join(whole, on=["task", "sample"], maintain_order="left")
    joined = joined.join(arms, on=["policy", "keep"], nulls_equal=True, maintain_order="left")
    tops = {name: pl.col(name) for name in MEANS}
    tops["same"] = pl.when(pl.col("tokens") > 0).then(pl.col("same") / pl.col("tokens"))
    tops["perplexity"] = pl.when(pl.col("scored") > 0).then(pl.col("nats"))
    return pl.concat(
        joined.select(
            "task",
            "sample",
            "group",
            "arm",
            *BYTES,
            metric=pl.lit(name),
            top=tops[name].cast(pl.Float64),
            base=(pl.col("scored") if METRICS[name].ratio else pl.lit(1.0)).cast(pl.Float64),
        ).drop_nulls("top")
        for name in METRICS
    )


def pair(ours: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    """Of what `measure` gave: the samples that both have, with ``other_top`` and ``other_base`` of one other arm."""
    others = theirs.select("task", "sample", "metric", other_top="top", other_base="base")
    return ours.join(others, on=["task", "sample", "metric"], maintain_order="left")


def sum_groups(measured: pl.DataFrame) -> pl.DataFrame:
    """The sums over the samples of each metric, task, group and arm, and how many ``samples`` there are.

    ``cell`` numbers the groups of all tasks, and ``stratum`` the tasks.
    """
    sums = [pl.col(name).sum() for name in measured.columns if name.endswith(("top", "base", "bytes"))]
    grouped = measured.group_by("metric", "task", "group", "arm", maintain_order=True).agg(*sums, samples=pl.len())
    return grouped.with_columns(
        cell=pl.struct("task", "group").rank("dense").cast(pl.Int64),
        stratum=pl.col("task").rank("dense").cast(pl.Int64),
    )
