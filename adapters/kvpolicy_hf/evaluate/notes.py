"""What a reader of the table should know: where the numbers come from something else than a policy's choice of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from kvpolicy import WindowMass

from .arms import Arm
from .chance import CONTROL, no_better_than_chance
from .code import parts_of
from .definitions import ALL, BASELINE
from .summary import pareto
from .texts import at_text, budget_text

__all__ = ["notes_of"]

MUCH = 1.25  # times the budget, and what storage grows by


def notes_of(rows: pl.DataFrame, summary: pl.DataFrame, arms: Iterable[Arm]) -> list[str]:
    """Notes on a summary, one sentence or two each.

    They say that storage is larger than what it holds, which policies hold far more than they were asked to, which
    keep a window that is more than their budget, and which nobody beats that are no better than chance.

    Args:
        rows: of the evaluation.
        summary: of these rows.
        arms: what was measured.
    """
    kept = {
        (policy, keep): share
        for policy, keep, share in summary.filter(pl.col("task") == ALL)
        .group_by("policy", "keep", maintain_order=True)
        .agg(pl.col("kept").first())
        .rows()
    }
    full = next((share for (policy, _), share in kept.items() if policy == BASELINE), 1.0)
    notes = []
    if full > 1.005:  # 101% as it is read
        notes.append(
            f"Bytes are those of the storage, which grows ahead of the rows in it: the full cache itself takes "
            f"{full:.0%} of what its rows need."
        )
    much = [
        f"{policy} {share:.0%} {at_text(keep)}"
        for (policy, keep), share in kept.items()
        if policy != BASELINE and keep is not None and share > MUCH * max(full, 1.0) * keep
    ]
    if much:
        notes.append(
            f"More bytes than asked for: {', '.join(much)}. A policy of the prompt alone lets everything stay that is "
            f"generated; protected rows count, too, and so does the room that uneven layers and heads leave."
        )
    return notes + _windows(rows, arms) + _chance(rows, summary)


def _windows(rows: pl.DataFrame, arms: Iterable[Arm]) -> list[str]:
    """Which policies have no row to choose, for their window alone is more than the budget of the mean prompt."""
    tokens = rows.filter(pl.col("policy") == BASELINE).select(pl.col("prompt_tokens").mean()).item()
    measured = set(rows["policy"])
    found: dict[tuple[int, float], list[str]] = {}
    for arm in arms:
        if arm.keep is not None and arm.label in measured:
            window = max(_kept_windows(arm), default=0)
            if window >= round(arm.keep * tokens):
                found.setdefault((window, arm.keep), []).append(arm.label)
    return [
        f"At a budget of {budget_text(keep)}, {round(keep * tokens)} of {tokens:.0f} rows, the window of {window} rows "
        f"takes all that {_listed(labels)} may keep: the newest rows stay, and no score decides. "
        f"Hint: a smaller window, as in 'snapkv(window=8)', or longer prompts."
        for (window, keep), labels in found.items()
    ]


def _chance(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """Which policies are on the front for their few bytes alone."""
    if summary.filter(pl.col("task") == ALL, pl.col("metric") == "quality").is_empty():
        return []
    found = [
        f"{policy} {at_text(keep)}"
        for policy, keep in no_better_than_chance(rows, pareto(summary))
        if policy != CONTROL
    ]
    if not found:
        return []
    return [
        f"On the Pareto front for few bytes alone, and so not marked in the report: {', '.join(found)}. Nothing shows "
        f"that quality is better there than that of random rows at the same budget."
    ]


def _kept_windows(arm: Arm) -> list[int]:
    """How many rows each scorer of the prompt keeps because they are its window."""
    parts = parts_of(arm.policy.prefill)
    return [part.window for part in parts if isinstance(part, WindowMass) and part.keep_window]


def _listed(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
