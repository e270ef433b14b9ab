"""What rows are worth by the attention that they received."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from .common import IMAGE, TEXT, Head, Row

__all__ = [
    "asked",
    "elite_queries",
    "group_mean",
    "masses",
    "mean_of",
    "moving",
    "paid_by",
    "pooled",
    "post_image",
    "strong",
    "window_mass",
]

INF = float("inf")


def group_mean(row: Row, query: int) -> float:
    """What a query paid to a row, mean over the query heads of its head; 0 before the row was there."""
    paid = row.paid.get(query, [0.0])
    return sum(paid) / len(paid)


def mean_of(lines: Sequence[Sequence[float]]) -> list[list[float]]:
    """The scores of each head replaced by the mean over the heads, place by place."""
    mean = [sum(line[n] for line in lines) / len(lines) for n in range(len(lines[0]))]
    return [list(mean) for _ in lines]


def masses(head: Head) -> list[float]:
    """All attention so far."""
    return [row.mass for row in head]


def asked(row: Row, seen: int) -> int:
    """How many queries have seen the row."""
    return seen - row.position


def moving(head: Head, seen: int, decay: float) -> list[float]:
    """An average that every query moves: ``m <- decay * m + (1 - decay) * A``, from 0."""
    scores = []
    for row in head:
        average = 0.0
        for query in range(seen):
            average = decay * average + (1 - decay) * group_mean(row, query)
        scores.append(average)
    return scores


def paid_by(head: Head, queries: Sequence[int]) -> list[float]:
    """What some queries paid to each row."""
    return [sum(group_mean(row, query) for query in queries) for row in head]


def window_mass(head: Head, seen: int, window: int, *, keep: bool) -> list[float]:
    """What the last ``window`` queries paid; with ``keep``, their own rows are worth more than anything."""
    start = max(seen - window, 0)
    scores = paid_by(head, range(start, seen))
    return [INF if keep and row.position >= start else score for row, score in zip(head, scores, strict=True)]


def pooled(scores: Sequence[float], kernel: int, mode: str) -> list[float]:
    """Each finite score as the mean, or the largest, of the finite ones within half a kernel on either side.

    The mean is taken in fractions: that of equal scores is that score, and not one that rounding sets above another.
    """
    finite = [n for n, score in enumerate(scores) if abs(score) != INF]
    out = list(scores)
    for place, n in enumerate(finite):
        near = [scores[m] for m in finite[max(place - kernel // 2, 0) : place + kernel // 2 + 1]]
        out[n] = max(near) if mode == "max" else float(sum(map(Fraction, near)) / len(near))
    return out


def post_image(head: Head, seen: int) -> list[int]:
    """The queries after the last image row; all where there is none."""
    last = max((row.position for row in head if row.segment == IMAGE), default=-1)
    return list(range(last + 1, seen))


def strong(head: Head, queries: Sequence[int], threshold: float) -> list[float]:
    """How many of the queries pay a row at least ``threshold`` of the most that they pay to any row.

    Counted for each query head, then the mean over the query heads of the head.
    """
    counts = []
    for row in head:
        count = 0.0
        for query in queries:
            if query in row.paid:
                for g, paid in enumerate(row.paid[query]):
                    largest = max(other.paid[query][g] for other in head if query in other.paid)
                    count += (paid >= threshold * largest) / len(row.paid[query])
        counts.append(count)
    return counts


def elite_queries(heads: Sequence[Head], seen: int, window: int, threshold: float) -> list[int]:
    """The text queries of the window that matter most to the last query, and the last query itself.

    A query matters by what the last query pays to the row at its position, mean over all query heads of the layer.
    """
    queries = range(max(seen - window, 0), seen)
    importance: dict[int, float] = {}
    for query in queries:
        at = [row for head in heads for row in head if row.position == query]
        if at[0].segment == TEXT:
            importance[query] = sum(group_mean(row, seen - 1) for row in at) / len(at)
    most = max(importance.values(), default=0.0)
    return [q for q in queries if q == seen - 1 or (q in importance and importance[q] >= threshold * most)]
