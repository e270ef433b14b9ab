"""Methods that look at keys alone: KNorm and KeyDiff."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .common import Head, Inputs, Now, Outcome, budget, simulate
from .folding import cosine
from .selection import UndecidedError, keep_best

__all__ = ["k_norm", "key_diff"]


def k_norm(inputs: Inputs, *, keep: float | None = None, rows: int | None = None) -> list[Outcome]:
    """KNorm (arXiv 2406.11430): the rows with the shortest keys."""

    def scores(head: Head) -> list[float]:
        return [-math.sqrt(float(row.key @ row.key)) for row in head]

    return _at_every_step(inputs, keep, rows, scores)


def key_diff(inputs: Inputs, *, keep: float | None = None, rows: int | None = None) -> list[Outcome]:
    """KeyDiff (arXiv 2504.15364): the rows whose keys point away from the mean direction of all keys.

    Raises:
        UndecidedError: if one of two rows has to leave: both keys are equally far from their mean, and only rounding
            would say which.
    """

    def scores(head: Head) -> list[float]:
        if len(head) == 2 and len(head[0].key) > 1 and all(row.key.any() for row in head):
            raise UndecidedError("two keys are equally far from their mean")
        units = [row.key / np.linalg.norm(row.key) if row.key.any() else row.key for row in head]
        mean = sum(units) / len(units)
        return [-cosine(row.key, mean) for row in head]

    return _at_every_step(inputs, keep, rows, scores)


def _at_every_step(
    inputs: Inputs, keep: float | None, rows: int | None, scores: Callable[[Head], list[float]]
) -> list[Outcome]:
    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        for heads in now.layers:
            for h, head in enumerate(heads):
                if len(head) > quota:
                    heads[h] = keep_best(head, scores(head), quota)

    return simulate(inputs, act)
