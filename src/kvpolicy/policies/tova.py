"""TOVA: drop what the last token does not look at."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..scorers import WindowMass
from ._budget import schedule_for

__all__ = ["tova"]


def tova(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
) -> Policy:
    """At every step drop the row that the latest query attends to least.

    Formula: ``s[j] = mean over heads of A[h, i, j]`` for the latest query i; one choice for all heads of a layer.

    Source: Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, arXiv 2401.06104, section 3.2.

    Good for: a bounded memory with even tables and little work: one query is scored at each step, for all heads of a
    layer at once.

    Not for: facts that are needed again much later: a row that the latest query does not look at goes, however much
    earlier queries looked at it.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    schedule = schedule_for("tova", keep=keep, rows=rows, memory=memory)
    pipeline = Pipeline(schedule=schedule, score=WindowMass(window=1, heads="mean", keep_window=False))
    return Policy(prefill=pipeline, decode=pipeline)
