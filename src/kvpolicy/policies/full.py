"""The do-nothing policy."""

from __future__ import annotations

from .._policy import Policy

__all__ = ["full"]


def full() -> Policy:
    """Keep every row: the baseline of all comparisons, token for token the plain cache.

    Formula: nothing is scored, evicted or merged.

    Source: none.

    Good for: knowing what a policy costs: every comparison here is with it.

    Not for: saving memory: it holds every row, with the bookkeeping of a table on top.
    """
    return Policy()
