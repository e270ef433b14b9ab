"""H2O: heavy hitters."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..scorers import AttentionMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["h2o"]


def h2o(
    *, keep: float | None = None, rows: int | None = None, memory: int | str | None = None, recent: float = 0.5
) -> Policy:
    """Keep the rows that have received the most attention so far, and the most recent ones.

    Formula: ``s[h, j] = sum over every query so far of A[h, i, j]``, per head; with a budget of k rows the last ``w =
    floor(recent * k)`` stay, and the top ``k - w`` of the rest.

    Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    NeurIPS 2023, arXiv 2306.14048, section 4.

    Good for: long answers under a bounded memory: it goes on scoring at every token, so that what becomes important
    while decoding can stay, and the recent half keeps the text fluent.

    Not for: a question at the end of a long prompt: early tokens were seen by more queries, so that their sums are
    larger, and what only the question needs may have gone before. Every prompt pays for a second product of queries and
    keys.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        recent: share of the budget that goes to the most recent rows, in [0, 1].

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    schedule = schedule_for("h2o", keep=keep, rows=rows, memory=memory)
    pipeline = Pipeline(schedule=schedule, score=AttentionMass(), select=TopK(recent=recent))
    return Policy(prefill=pipeline, decode=pipeline)
