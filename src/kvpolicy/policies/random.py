"""Random eviction: the control."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..scorers import Noise
from ._budget import schedule_for

__all__ = ["random"]


def random(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    seed: int = 0,
) -> Policy:
    """Keep rows by chance: what a method must beat.

    Formula: ``s[j] = hash(seed, layer, position)`` in [0, 1), the same for all heads of a layer: at any time the rows
    left are a uniform sample of those seen.

    Source: none.

    Good for: a control: what a method keeps beyond it is what the method knows. The rows that stay are the same for a
    seed.

    Not for: anything else.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        seed: the same seed keeps the same rows.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    pipeline = Pipeline(schedule=schedule_for("random", keep=keep, rows=rows, memory=memory), score=Noise(seed=seed))
    return Policy(prefill=pipeline, decode=pipeline)
