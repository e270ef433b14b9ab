"""The published methods as loops over their formulas, in float64. Nothing here comes from the package under test.

Every function simulates one request (one layer, one batch row, no padding): a prompt, then a token at a time. It takes
queries ``q`` [Hq, N, D], keys ``k`` [H, N, D], values ``v`` [H, N, Dv], of which the first ``prompt`` tokens are the
prompt, and returns an `Outcome` for the prompt and for every token after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["Outcome", "Row", "budget", "causal_attention", "elastic_cache", "h2o", "streaming_llm"]

Arr = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Row:
    """One cached row of one head."""

    position: int
    key: Arr
    value: Arr
    count: int = 1  # tokens it stands for
    mass: float = 0.0  # attention it has received so far, mean over the query heads of its head


Heads = list[list[Row]]


@dataclass
class Outcome:
    """After a pass: the rows of each head in order of arrival, and what the pass's queries read, [Hq, Q, Dv]."""

    heads: Heads
    outputs: Arr


def causal_attention(q: Arr, k: Arr, scale: float, asked_at: list[int], stands_at: list[list[int]]) -> Arr:
    """Probabilities [Hq, Q, n] of queries [Hq, Q, D] over keys [H, n, D]; ``Hq / H`` neighbours share a head.

    A query at ``asked_at[i]`` sees the rows of its head that stand at or before it.
    """
    shares = np.zeros((q.shape[0], q.shape[1], k.shape[1]))
    for head in range(q.shape[0]):
        shared = head // (q.shape[0] // k.shape[0])
        for i in range(q.shape[1]):
            seen = [j for j in range(k.shape[1]) if stands_at[shared][j] <= asked_at[i]]
            logits = [scale * float(q[head, i] @ k[shared, j]) for j in seen]
            largest = max(logits)
            powers = [math.exp(logit - largest) for logit in logits]
            total = sum(powers)
            for j, power in zip(seen, powers, strict=True):
                shares[head, i, j] = power / total
    return shares


def budget(tokens: int, keep: float | None, rows: int | None) -> int:
    """Rows that may stay: a constant, or a share of the tokens seen, half to even, at least one."""
    if rows is not None:
        return rows
    assert keep is not None
    return max(1, round(keep * tokens))


Evict = Callable[[Heads, Arr, int], Heads]  # rows of each head, attention received in this pass [Hq, n], tokens seen


def _simulate(q: Arr, k: Arr, v: Arr, prompt: int, scale: float, evict: Evict) -> list[Outcome]:
    heads: Heads = [[] for _ in range(k.shape[0])]
    group = q.shape[0] // k.shape[0]
    outcomes = []
    for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, q.shape[1]))]:
        for h, rows in enumerate(heads):
            rows.extend(Row(t, k[h, t], v[h, t]) for t in range(start, stop))
        shares = causal_attention(
            q[:, start:stop],
            np.array([[row.key for row in rows] for rows in heads]),
            scale,
            list(range(start, stop)),
            [[row.position for row in rows] for rows in heads],
        )
        outputs = np.zeros((q.shape[0], stop - start, v.shape[2]))
        for head, i in np.ndindex(*shares.shape[:2]):
            for j, row in enumerate(heads[head // group]):
                outputs[head, i] += shares[head, i, j] * row.value
        received = shares.sum(axis=1)
        for h, rows in enumerate(heads):
            for j, row in enumerate(rows):
                row.mass += sum(received[h * group + g, j] for g in range(group)) / group
        heads = evict(heads, received, stop)
        outcomes.append(Outcome([[replace(row) for row in rows] for rows in heads], outputs))
    return outcomes


def elastic_cache(
    q: Arr,
    k: Arr,
    v: Arr,
    prompt: int,
    scale: float,
    *,
    keep: float | None = None,
    rows: int | None = None,
    first: int = 1,
    last: int = 1,
    distance: int = 25,
) -> list[Outcome]:
    """Prompt: keep the most attended rows, the same for all heads, and average the others into the nearest one that is
    not protected; where only protected rows stay, the others are dropped.

    Token: while there are too many rows, remove the one at the fixed point ``p = max(kept_prompt - distance, first)``:
    the p oldest stay, of the others the latest.
    """
    kept_prompt = 0

    def compress(heads: Heads, received: Arr, seen: int) -> Heads:
        nonlocal kept_prompt
        protected = {j for j in range(seen) if j < first or j >= seen - last}
        quota = max(budget(seen, keep, rows), len(protected))
        score = [sum(received[head, j] for head in range(len(received))) / len(received) for j in range(seen)]
        best = sorted((j for j in range(seen) if j not in protected), key=lambda j: (score[j], j), reverse=True)
        kept = sorted([*protected, *best[: quota - len(protected)]])
        kept_prompt = len(kept)
        bucket: dict[int, list[int]] = {j: [j] for j in kept}
        anchors = [j for j in kept if j not in protected]
        for j in range(seen):
            if j not in kept and anchors:
                bucket[min(anchors, key=lambda anchor: (abs(anchor - j), anchor))].append(j)
        return [
            [
                Row(
                    position=j,
                    key=sum(head[i].key for i in bucket[j]) / len(bucket[j]),
                    value=sum(head[i].value for i in bucket[j]) / len(bucket[j]),
                    count=len(bucket[j]),
                )
                for j in kept
            ]
            for head in heads
        ]

    def evict(heads: Heads, received: Arr, seen: int) -> Heads:
        if seen == prompt:
            return compress(heads, received, seen)
        quota, p = max(budget(seen, keep, rows), first), max(kept_prompt - distance, first)
        return [_best(head, quota, lambda place, row: (place < first, place < p, row.position)) for head in heads]

    return _simulate(q, k, v, prompt, scale, evict)


def h2o(
    q: Arr,
    k: Arr,
    v: Arr,
    prompt: int,
    scale: float,
    *,
    keep: float | None = None,
    rows: int | None = None,
    recent: float = 0.5,
) -> list[Outcome]:
    """Of a budget of k rows the last ``w = floor(recent * k)``, and the ``k - w`` most attended of the rest."""

    def evict(heads: Heads, received: Arr, seen: int) -> Heads:
        quota = budget(seen, keep, rows)
        window = math.floor(recent * quota)
        oldest_recent = len(heads[0]) - window
        return [
            _best(head, quota, lambda place, row: (place >= oldest_recent, row.mass, row.position)) for head in heads
        ]

    return _simulate(q, k, v, prompt, scale, evict)


def streaming_llm(
    q: Arr,
    k: Arr,
    v: Arr,
    prompt: int,
    scale: float,
    *,
    keep: float | None = None,
    rows: int | None = None,
    sinks: int = 4,
) -> list[Outcome]:
    """The first ``sinks`` tokens whatever the budget of k rows is, and the last ``k - sinks``."""

    def evict(heads: Heads, received: Arr, seen: int) -> Heads:
        window = max(budget(seen, keep, rows) - sinks, 0)
        return [[row for row in head if row.position < sinks or row.position >= seen - window] for head in heads]

    return _simulate(q, k, v, prompt, scale, evict)


def _best(head: list[Row], quota: int, worth: Callable[..., Any]) -> list[Row]:
    """The ``quota`` rows of the highest worth (place among the rows, row), in order of arrival."""
    ranked = sorted(range(len(head)), key=lambda place: worth(place, head[place]), reverse=True)
    return [head[place] for place in sorted(ranked[:quota])]
