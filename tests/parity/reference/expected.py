"""Expected Attention (arXiv 2510.00636): what future queries would attend to, were they like the latest ones."""

from __future__ import annotations

import math

import numpy as np

from .common import Arr, Head, Inputs, Now, Outcome, budget, simulate
from .rope import rotate
from .selection import stays

__all__ = ["expected_attention", "expected_scores", "mean_rotation"]


def expected_attention(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    first: int = 4,
    window: int = 128,
    future: int = 512,
    epsilon: float = 0.0,
    covariance: bool = True,
) -> list[Outcome]:
    """After the prompt, the first rows and those that a Gaussian over queries expects to matter."""

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        if now.decoding or not now.holds_more_than(quota):
            return
        turn = mean_rotation(inputs.q.shape[3], now.seen - 1, future)
        for layer, heads in enumerate(now.layers):
            group = inputs.q.shape[1] // len(heads)
            for h, head in enumerate(heads):
                asking = now.queries[layer, h * group : (h + 1) * group, max(now.seen - window, 0) :]
                scores = expected_scores(head, asking, now.seen, now.scale, turn, epsilon, covariance=covariance)
                heads[h] = [head[n] for n in stays(head, scores, quota, first=first)]

    return simulate(inputs, act)


def mean_rotation(dim: int, last: int, future: int) -> Arr:
    """The matrix [D, D] that is the mean of the rotations to the positions ``last + 1 .. last + future``."""
    turn = np.zeros((dim, dim))
    for t in range(1, future + 1):
        for axis in range(dim):
            turn[:, axis] += rotate(np.eye(dim)[axis], last + t) / future
    return turn


def expected_scores(
    head: Head, queries: Arr, seen: int, scale: float, turn: Arr, epsilon: float, *, covariance: bool
) -> list[float]:
    """For queries [G, n, D], ``exp(s k.(R mu) + s^2/2 k^T R C R^T k)``, normalised; the mean over G, times ``|v|``."""
    share = [0.0] * len(head)
    for lines in queries:
        start = seen - len(lines)
        plain = [rotate(query, -(start + i)) for i, query in enumerate(lines)]
        mean = sum(plain) / len(plain)
        spread = sum(np.outer(x - mean, x - mean) for x in plain) / len(plain)
        logits = []
        for row in head:
            logit = scale * float(row.key @ (turn @ mean))
            if covariance:
                logit += scale**2 / 2 * float(row.key @ (turn @ spread @ turn.T) @ row.key)
            logits.append(logit)
        powers = [math.exp(logit - max(logits)) for logit in logits]
        for n, power in enumerate(powers):
            share[n] += power / sum(powers) / len(queries)
    return [(share[n] + epsilon) * math.sqrt(float(row.value @ row.value)) for n, row in enumerate(head)]
