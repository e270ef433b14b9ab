"""Which of the policies that nobody beats do no better than rows by chance: few bytes alone are no merit."""

from __future__ import annotations

import polars as pl

from .definitions import ALL, BASELINE
from .summary import compare

__all__ = ["CONTROL", "no_better_than_chance"]

CONTROL = "random"  # the recipe that keeps rows by chance


def no_better_than_chance(rows: pl.DataFrame, front: pl.DataFrame) -> list[tuple[str, float]]:
    """The arms of a front that are not shown to be better in quality than ``random`` at the same budget.

    Where ``random`` was not measured at a budget, or no task has two groups to draw from, nothing is known: such arms
    are left out, and so are ``full`` and those with budgets of their own.

    Args:
        rows: as `summarise` takes them.
        front: of `pareto`, for quality.

    Returns:
        Policies and budgets, ``random`` itself included where it is on the front.
    """
    by_chance = rows.filter(pl.col("policy") == CONTROL, pl.col("quality").is_not_null())
    budgets = set(by_chance["keep"].drop_nulls())
    found = []
    for policy, keep in front.select("policy", "keep").rows():
        if policy == BASELINE or keep not in budgets:
            continue
        if policy == CONTROL:
            found.append((policy, keep))
            continue
        both = pl.col("policy").is_in([policy, CONTROL]) & (pl.col("keep") == keep)
        table = compare(rows.filter(both | (pl.col("policy") == BASELINE)), policy, keep, CONTROL, keep)
        told = table.filter(pl.col("task") == ALL).row(0, named=True)
        if told["groups"] and told["verdict"] != "better":
            found.append((policy, keep))
    return found
