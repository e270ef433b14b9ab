"""KNorm: keep short keys."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..scorers import KeyNorm
from ._budget import schedule_for

__all__ = ["k_norm"]


def k_norm(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
) -> Policy:
    """Keep the rows whose keys have the smallest norm.

    Formula: ``s[h, j] = -||k[h, j]||``.

    Source: Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", EMNLP 2024, arXiv
    2406.11430, section 3.

    Good for: the cheapest rule that looks at content: it needs keys alone, no query and no attention, and works with
    any attention kernel.

    Not for: models that normalise their keys (QK norm), whose lengths then say little, and prompts whose question
    should choose the rows.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    pipeline = Pipeline(schedule=schedule_for("k_norm", keep=keep, rows=rows, memory=memory), score=KeyNorm())
    return Policy(prefill=pipeline, decode=pipeline)
