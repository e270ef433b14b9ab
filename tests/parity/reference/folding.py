"""What becomes of a kept row that others fold into, and which row is the most similar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .common import Arr, Head, Row

__all__ = ["Into", "by_target", "cosine", "fold", "most_similar"]


@dataclass(frozen=True)
class Into:
    """A row that leaves, the kept row that it goes into, and how similar their keys are."""

    source: int
    target: int
    similarity: float


def cosine(a: Arr, b: Arr) -> float:
    """The cosine of the angle between two keys; 0 where one of them is zero."""
    norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / norms if norms > 0 else 0.0


def most_similar(head: Head, kept: Sequence[int]) -> list[Into]:
    """Every row that leaves with the kept row of the most similar key; ties go to the earliest."""
    moves = []
    for n in range(len(head)):
        if n not in kept and kept:
            similarity, target = max((cosine(head[n].key, head[a].key), -a) for a in kept)
            moves.append(Into(n, -target, similarity))
    return moves


def by_target(kept: Sequence[int], moves: Sequence[Into]) -> dict[int, list[Into]]:
    """For every kept row the moves into it, none for most."""
    return {n: [move for move in moves if move.target == n] for n in kept}


def fold(
    head: Head,
    n: int,
    own: float,
    folds: Sequence[tuple[int, float]],
    *,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> Row:
    """Row ``n`` as ``own`` times itself plus the weighted rows of ``folds`` (place, weight).

    Counts and the attention received add up.
    """
    row = head[n]
    key, value, count, mass = own * row.key, own * row.value, row.count, row.mass
    paid = dict(row.paid)
    for source, weight in folds:
        key = key + weight * head[source].key
        value = value + weight * head[source].value
        count += head[source].count
        mass += head[source].mass
        for query, shares in head[source].paid.items():
            mine = paid.get(query, [0.0] * len(shares))
            paid[query] = [a + b for a, b in zip(mine, shares, strict=True)]
    return replace(row, key=key_scale * key, value=value_scale * value, count=count, mass=mass, paid=paid)
