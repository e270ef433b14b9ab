"""SnapKV: what the end of the prompt looks at."""

from __future__ import annotations

from typing import Literal

from .._policy import Pipeline, Policy
from ..scorers import Pooled, WindowMass
from ._budget import schedule_for

__all__ = ["snapkv"]


def snapkv(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    window: int = 32,
    kernel: int = 7,
    pooling: Literal["mean", "max"] = "mean",
) -> Policy:
    """Keep the rows that the last queries of the prompt attend to, with their neighbours, and that window itself.

    Formula: ``s[h, j] = pool over |j' - j| <= kernel // 2 of the sum over the last w queries i of A[h, i, j']``, mean
    over the query heads that share a key/value head before pooling; the window's own w rows come first. Prompt only.

    Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, arXiv 2404.14469,
    section 4.

    Good for: a long prompt with its question at the end and a short answer: the question is in the window, so that it
    chooses the rows.

    Not for: several turns, since what the first question does not look at is gone before the second one is asked; long
    answers, since generated rows all stay; prompts that are hardly longer than the window.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        window: queries at the end of the prompt that vote (32; 8 in the authors' LongBench runs).
        kernel: odd width of the pooling.
        pooling: mean (default of the authors' code) or max (their LongBench runs).

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    schedule = schedule_for("snapkv", keep=keep, rows=rows, memory=memory)
    score = Pooled(WindowMass(window=window), kernel=kernel, mode=pooling)
    return Policy(prefill=Pipeline(schedule=schedule, score=score))
