"""Example answers for the report: what was wanted, what the full cache said, and what every arm said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import polars as pl

from .definitions import BASELINE
from .texts import budget_text

__all__ = ["Example", "Said", "choose_examples"]

LONGEST = 240  # characters of an answer


@final
@dataclass(frozen=True, slots=True)
class Said:
    """What an arm said, and whether these are the words of the full cache."""

    text: str
    same: bool


@final
@dataclass(frozen=True, slots=True)
class Example:
    """One sample.

    Attributes:
        task: its task.
        sample: its number there.
        answer: the wanted answer; None where the full cache's stands for it.
        full: what the full cache said.
        budgets: as they read; the columns.
        policies: what each policy said at each budget, None where it was not run.
    """

    task: str
    sample: int
    answer: str | None
    full: str
    budgets: Sequence[str]
    policies: Mapping[str, Sequence[Said | None]]


def choose_examples(rows: pl.DataFrame, count: int) -> list[Example]:
    """So many samples with answers, spread over tasks and evenly over each task, whatever came out."""
    spoken = rows.filter(pl.col("policy") == BASELINE, pl.col("said").fill_null("") != "")
    of_tasks = [part.sort("sample")["sample"] for part in spoken.partition_by("task", maintain_order=True)]
    tasks = spoken["task"].unique(maintain_order=True).to_list()
    made = []
    for number, (task, samples) in enumerate(zip(tasks, of_tasks, strict=True)):
        share = min(len(range(number, count, len(tasks))), len(samples))  # as dealt out in turn
        chosen = [samples[place * len(samples) // share] for place in range(share)]
        made += [_example(rows.filter(pl.col("task") == task, pl.col("sample") == sample)) for sample in chosen]
    return made


def _example(rows: pl.DataFrame) -> Example:
    """The rows of one sample."""
    full = rows.row(by_predicate=pl.col("policy") == BASELINE, named=True)
    rest = rows.filter(pl.col("policy") != BASELINE)
    keeps = rest["keep"].unique().sort(descending=True, nulls_last=True).to_list()
    policies: dict[str, list[Said | None]] = {}
    for row in rest.iter_rows(named=True):
        line = policies.setdefault(row["policy"], [None] * len(keeps))
        line[keeps.index(row["keep"])] = _said(row, full)
    budgets = [budget_text(keep) for keep in keeps]
    return Example(full["task"], full["sample"], _cut(full["answer"]), _cut(full["said"]), budgets, policies)


def _said(row: Mapping[str, Any], full: Mapping[str, Any]) -> Said:
    text = row["said"] or ""
    return Said(_cut(text), text.split() == full["said"].split())


def _cut(text: str | None) -> Any:
    return text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}…"
