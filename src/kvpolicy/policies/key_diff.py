"""KeyDiff: keep keys that are unlike the others."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..scorers import KeyDifference
from ._budget import schedule_for

__all__ = ["key_diff"]


def key_diff(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
) -> Policy:
    """Keep the rows whose keys point away from the mean direction of all keys.

    Formula: ``s[h, j] = -cos(k[h, j], mean over j' of k[h, j'] / ||k[h, j']||)``.

    Source: Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
    Resource-Constrained Environments", arXiv 2504.15364, section 4.

    Good for: prompts without a question yet, such as a document that is read before anybody asks: it needs keys alone
    and keeps them diverse.

    Not for: prompts whose question should choose the rows, and repetitive text of which every repetition matters.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    pipeline = Pipeline(schedule=schedule_for("key_diff", keep=keep, rows=rows, memory=memory), score=KeyDifference())
    return Policy(prefill=pipeline, decode=pipeline)
