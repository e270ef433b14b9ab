"""Rows of an evaluation summed up: values with intervals, paired differences, and the arms that none beats."""

from __future__ import annotations

import polars as pl

from .against import against
from .definitions import BASELINE, METRICS, metric_of
from .errors import EvaluationError
from .measured import arm_name, check_rows, measure, number_arms

__all__ = ["compare", "mean_quality", "pareto", "summarise"]


def summarise(rows: pl.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pl.DataFrame:
    """Every metric of every arm (a policy at a budget) on every task, and on ``"all"``, where tasks count alike.

    Args:
        rows: a row per task, sample, policy and budget. ``full`` has every sample, and an arm has all samples of each
            task that it has at all.
        resamples: of the bootstrap over groups; groups are drawn within their task.
        seed: of the bootstrap; the same seed gives the same intervals.

    Returns:
        Columns ``task, policy, keep, metric``; ``samples``, how many have a value; ``groups``, the independent ones
        that were drawn from, 0 where no task has two and the interval is no evidence; ``value, low, high``, with a 95%
        percentile interval; ``difference, difference_low, difference_high`` to ``full`` on the same samples, in the
        metric's own unit, null for ``full`` and where it has no value; ``kept``, K/V bytes over the full cache's.

        Values are means over samples; perplexity is exp(sum of nats / sum of tokens). On ``"all"`` they are unweighted
        means over tasks, and perplexity is exp of the mean of nats a token; an arm is there if it has every task that
        has the metric. A metric that an arm does not have is left out.

    Raises:
        EvaluationError: if the rows do not fit together, see `check_rows`, or for fewer than 100 resamples.
    """
    check_rows(rows)
    arms = number_arms(rows)
    full = arms.filter(pl.col("policy") == BASELINE)["arm"].item()
    return against(full, measure(rows, arms), arms, METRICS.values(), resamples, seed)


def compare(
    rows: pl.DataFrame,
    policy: str,
    keep: float | None,
    baseline: str,
    baseline_keep: float | None,
    metric: str = "quality",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """One arm against another on the samples where both have the metric.

    Args:
        rows: as `summarise` takes them.
        policy: the label of one arm.
        keep: its budget; None: the policy's own.
        baseline: the label of the arm that it is compared with.
        baseline_keep: its budget.
        metric: a name of `METRICS`.
        resamples: of the bootstrap over groups, within tasks.
        seed: of the bootstrap.

    Returns:
        A row per task with such samples, then ``"all"``, the mean over these tasks: the columns of `summarise` for the
        first arm, its differences being to the second; ``baseline``, the second one's value; and ``verdict``,
        ``"better"`` or ``"worse"`` where the difference's interval excludes zero and there are groups to draw from,
        else ``"undecided"``.

    Raises:
        EvaluationError: if the rows do not fit together, see `check_rows`; for a metric, policy or budget that is not
            in the rows, an arm against itself, arms that share no sample with the metric, or fewer than 100 resamples.
    """
    chosen = metric_of(metric)
    check_rows(rows)
    arms = number_arms(rows)
    ours, theirs = _arm(arms, policy, keep), _arm(arms, baseline, baseline_keep)
    if ours == theirs:
        raise EvaluationError(
            f"{arm_name(policy, keep)} is compared with itself. Hint: name another arm as the baseline."
        )
    measured = measure(rows, arms).filter(pl.col("metric") == metric)
    both = [measured.filter(pl.col("arm") == arm) for arm in (ours, theirs)]
    common = both[0].join(both[1], on=["task", "sample"]).select("task", "sample")
    if common.is_empty():
        raise EvaluationError(
            f"{arm_name(policy, keep)} and {arm_name(baseline, baseline_keep)} share no sample that has {metric!r}."
        )
    paired = pl.concat(both).join(common, on=["task", "sample"], how="semi")
    table = against(theirs, paired, arms, [chosen], resamples, seed)
    is_baseline = (pl.col("policy") == baseline) & pl.col("keep").eq_missing(baseline_keep)
    values = table.filter(is_baseline).select("task", baseline="value")
    first = table.filter(~is_baseline).join(values, on="task", maintain_order="left")
    intervals = first.select("groups", "difference_low", "difference_high").rows()
    return first.with_columns(verdict=pl.Series([chosen.verdict(*one) for one in intervals], dtype=pl.String))


def mean_quality(rows: pl.DataFrame, tasks: int) -> dict[str, float]:
    """The quality of each policy that has it on so many tasks, as a mean over these, without an interval.

    Args:
        rows: as `summarise` takes them, of one budget.
        tasks: how many there are; policies that lack one are left out.
    """
    means = rows.group_by("policy", "task").agg(pl.col("quality").mean()).drop_nulls("quality")
    whole = means.group_by("policy").agg(pl.col("quality").mean(), pl.len())
    return dict(whole.filter(pl.col("len") == tasks).select("policy", "quality").rows())


def pareto(summary: pl.DataFrame, task: str = "all", metric: str = "quality") -> pl.DataFrame:
    """The arms of a summary that no other beats: none keeps as few bytes and is as good, and better in one of them.

    Args:
        summary: of `summarise`.
        task: one of its tasks; ``"all"`` is the mean over tasks.
        metric: a name of `METRICS`.

    Returns:
        Their rows of the summary, by ``kept``, fewest bytes first. Values count as they are, without their intervals.

    Raises:
        EvaluationError: for a metric that does not exist, or a task that has none of it.
    """
    better = metric_of(metric).better
    found = summary.filter(pl.col("task") == task, pl.col("metric") == metric)
    if found.is_empty():
        tasks = summary.filter(pl.col("metric") == metric)["task"].unique(maintain_order=True)
        raise EvaluationError(f"no {metric!r} on task {task!r}. Hint: it is there on: {', '.join(tasks) or 'none'}.")
    worth = better * found["value"].to_numpy()
    kept = found["kept"].to_numpy()
    as_good = (worth >= worth[:, None]) & (kept <= kept[:, None])  # [arm, the one that it is held against]
    beaten = (as_good & ((worth > worth[:, None]) | (kept < kept[:, None]))).any(axis=1)
    return found.filter(pl.Series(~beaten)).sort("kept", maintain_order=True)


def _arm(arms: pl.DataFrame, policy: str, keep: float | None) -> int:
    """The number of an arm.

    Raises:
        EvaluationError: if there is none of this policy, or not at this budget.
    """
    of_policy = arms.filter(pl.col("policy") == policy)
    if of_policy.is_empty():
        names = ", ".join(arms["policy"].unique(maintain_order=True))
        raise EvaluationError(f"no policy {policy!r} among the rows. Hint: they have {names}.")
    found = of_policy.filter(pl.col("keep").eq_missing(keep))
    if found.is_empty():
        budgets = ", ".join("None" if budget is None else f"{budget:g}" for budget in of_policy["keep"])
        raise EvaluationError(f"no {arm_name(policy, keep)} among the rows. Hint: its budgets are {budgets}.")
    return int(found["arm"][0])
