"""Methods that fold the rows that leave into those that stay: LOOK-M, D2O, CaM, KVMerger, KeepKV."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from .budgets import by_variance, in_proportion
from .common import Arr, Head, Inputs, Now, Outcome, Row, budget, simulate
from .folding import Into, by_target, cosine, fold, most_similar
from .hashing import noise
from .selection import best, stays
from .statistics import masses

__all__ = ["cam", "clusters", "d2o", "keep_kv", "kv_merger", "look_m", "without_perturbation"]


def look_m(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    merge: str = "pivotal",
    recent: float = 0.5,
) -> list[Outcome]:
    """LOOK-M (arXiv 2406.18139): after the prompt, all text, the end, and the most attended image rows.

    The m rows that go into K, that of the most similar key, make it ``(K + sum (K_i + K)/2) / (1 + m)`` (pivotal),
    ``(K + sum K_i) / (1 + m)`` (average) or ``(K + sum s_i K_i) / (1 + m)`` (weighted, s the similarity); V likewise.
    """

    def merged(head: Head, n: int, moves: list[Into]) -> Row:
        total = 1 + len(moves)
        own, weights = 1 / total, [1 / total for _ in moves]
        if merge == "pivotal":
            own, weights = (1 + len(moves) / 2) / total, [1 / (2 * total) for _ in moves]
        elif merge == "weighted":
            weights = [move.similarity / total for move in moves]
        return fold(head, n, own, [(move.source, w) for move, w in zip(moves, weights, strict=True)])

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        if now.decoding or not now.holds_more_than(quota):
            return
        for heads in now.layers:
            for h, head in enumerate(heads):
                kept = stays(head, masses(head), quota, recent=recent, text=True)
                heads[h] = [merged(head, n, moves) for n, moves in by_target(kept, most_similar(head, kept)).items()]

    return simulate(inputs, act)


def d2o(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    first: int = 4,
    beta: float = 0.7,
    recent: float = 0.5,
    exempt: tuple[int, ...] = (),
) -> list[Outcome]:
    """D2O (arXiv 2406.13035): H2O with layer budgets by variance, whose rows fold where they are similar enough.

    The gate of a head is at first the mean of the similarities of the rows that leave; then it moves by ``beta`` to
    the mean of those that leave now. Rows below it are dropped. The others weigh ``e^similarity``, their target e.
    """
    gates: dict[tuple[int, int], Fraction] = {}  # exact: rows that are all equally similar all pass
    shares: list[list[int]] = []  # of the prompt

    def passing(moves: list[Into], gate: tuple[int, int]) -> list[Into]:
        if moves:
            mean = sum(Fraction(move.similarity) for move in moves) / len(moves)
            gates[gate] = Fraction(beta) * mean + (1 - Fraction(beta)) * gates[gate] if gate in gates else mean
        return [move for move in moves if move.similarity >= gates[gate]]

    def merged(head: Head, n: int, moves: list[Into]) -> Row:
        powers = [math.exp(move.similarity) for move in moves]
        total = math.e + sum(powers)
        return fold(head, n, math.e / total, [(m.source, p / total) for m, p in zip(moves, powers, strict=True)])

    def act(now: Now) -> None:
        nonlocal shares
        k = budget(now.seen, keep, rows)
        if now.decoding:
            quotas = in_proportion(now, k, shares or [[1] * len(heads) for heads in now.layers], capped=False)
        elif now.holds_more_than(k):
            scores = [[masses(head) for head in heads] for heads in now.layers]
            quotas = shares = by_variance(now, k, scores, exempt=exempt)
        else:
            return
        for layer, heads in enumerate(now.layers):
            for h, head in enumerate(heads):
                kept = stays(head, masses(head), quotas[layer][h], first=first, recent=recent)
                moves = passing(most_similar(head, kept), (layer, h))
                heads[h] = [merged(head, n, into) for n, into in by_target(kept, moves).items()]

    return simulate(inputs, act)


def cam(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    sinks: int = 4,
    recent: float = 0.5,
    count: int = 32,
    seed: int = 0,
) -> list[Outcome]:
    """CaM (ICML 2024): H2O with sinks; the values of the rows that leave may be added to those after them.

    A row goes with probability ``score / largest score kept``, 1/count of it to each of the next ``count`` kept rows.
    """

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        for layer, heads in enumerate(now.layers):
            for h, head in enumerate(heads):
                scores = masses(head)
                kept = stays(head, scores, quota, first=sinks, recent=recent)
                most = max((scores[n] for n in kept), default=0.0)
                targets: dict[int, list[int]] = {}
                for source, row in enumerate(head):
                    likely = min(max(scores[source] / most, 0.0), 1.0) if most > 0 else 0.0
                    if source not in kept and noise(seed, layer, row.position) < likely:
                        targets[source] = [n for n in kept if n > source][:count]
                heads[h] = [_with_values(head, n, targets, count) for n in kept]

    return simulate(inputs, act)


def _with_values(head: Head, n: int, targets: dict[int, list[int]], count: int) -> Row:
    """A row with the values that go to it; what a row counts and was paid is shared by all that it goes to."""
    row = replace(head[n])
    for source, reached in targets.items():
        if n in reached:
            row.value = row.value + head[source].value / count
            row.count += head[source].count / len(reached)
            row.mass += head[source].mass / len(reached)
    return row


def kv_merger(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    sigma: float | None = None,
    epsilon: float | None = None,
    values: str = "mean",
    recent: float = 0.25,
    top: float = 0.25,
) -> list[Outcome]:
    """KVMerger (arXiv 2407.08454): after the prompt, runs of similar keys become one row each, by Gaussian weights.

    The published value is the number of rows times their weighted mean ("scaled"). With the mean itself, attention
    weighs a row by the tokens that it stands for, ``+ log(count)``.
    """

    def merged(head: Head, pivot: int, sources: list[int]) -> Row:
        distances = [
            math.sqrt(float((head[i].key - head[pivot].key) @ (head[i].key - head[pivot].key))) for i in sources
        ]
        width = sigma if sigma is not None else sum(distances) / max(len(distances), 1)
        weights = [math.exp(-(d**2) / (2 * width**2)) if width > 0 else 1.0 for d in distances]
        total = 1 + sum(weights)
        folds = [(i, weight / total) for i, weight in zip(sources, weights, strict=True)]
        return fold(head, pivot, 1 / total, folds, value_scale=1 + len(sources) if values == "scaled" else 1.0)

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        if now.decoding or not now.holds_more_than(quota):
            return
        for heads in now.layers:
            for h, head in enumerate(heads):
                sets = clusters(head, masses(head), quota, epsilon, recent, top)
                heads[h] = [merged(head, pivot, [n for n in one if n != pivot]) for pivot, one in sorted(sets.items())]

    return simulate(inputs, act, count_bias=values == "mean")


def clusters(
    head: Head, scores: list[float], quota: int, epsilon: float | None, recent: float, top: float
) -> dict[int, list[int]]:
    """Pivots, each with its cluster.

    The last and the best rows stay alone. Neighbours among the others are linked where their similarity is above
    ``epsilon``; without one, exactly as many of the most similar links are taken as bring the table to its quota.
    A cluster's pivot is its most attended row.
    """
    if len(head) <= quota:
        return {n: [n] for n in range(len(head))}
    ends = math.floor(recent * quota)
    alone = list(range(len(head) - ends, len(head)))
    tops = max(min(math.floor(top * quota), (quota - ends - 1) // 2), 0)
    alone += best(scores, range(len(head) - ends), tops)
    rest = [n for n in range(len(head)) if n not in alone]
    links = {n: cosine(head[n].key, head[n + 1].key) for n in rest if n + 1 in rest}
    if epsilon is None:
        wanted = len(rest) - (quota - len(alone))
        taken = best([links.get(n, -math.inf) for n in range(len(head))], list(links), wanted)
    else:
        taken = [n for n, similarity in links.items() if similarity > epsilon]
    sets: list[list[int]] = [[n] for n in alone]
    for n in rest:
        if n - 1 in taken:
            sets[-1].append(n)
        else:
            sets.append([n])
    return {max(one, key=lambda n: (scores[n], n)): one for one in sets}


def keep_kv(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    threshold: float = 0.8,
    first: int = 4,
    recent: float = 0.5,
    limit: float = 2.0,
) -> list[Outcome]:
    """KeepKV (arXiv 2504.09936): rows count their tokens, and merging does not change what the latest query reads."""

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        for layer, heads in enumerate(now.layers):
            group = now.queries.shape[1] // len(heads)
            for h, head in enumerate(heads):
                query = np.mean(now.queries[layer, h * group : (h + 1) * group, -1], axis=0)
                kept = stays(head, masses(head), quota, first=first, recent=recent)
                moves = [move for move in most_similar(head, kept) if move.similarity >= threshold]
                heads[h] = [
                    without_perturbation(head, n, [move.source for move in into], query, now.scale, limit)
                    for n, into in by_target(kept, moves).items()
                ]

    return simulate(inputs, act, count_bias=True)


def without_perturbation(head: Head, n: int, sources: list[int], query: Arr, scale: float, limit: float) -> Row:
    """Rows weighed by ``w = count * exp(scale * q.k)``, the key scaled so that the new row's own w is the sum of these.

    That is, by ``ln(sum w / sum count) / mean of (scale * q.k)``; a factor outside ``[1/limit, limit]`` is left out.
    """
    rows = [head[n], *(head[i] for i in sources)]
    if len(rows) == 1:
        return head[n]
    logits = [scale * float(query @ row.key) for row in rows]
    largest = max(logits)
    weights = [row.count * math.exp(logit - largest) for row, logit in zip(rows, logits, strict=True)]
    total = sum(weights)
    due = largest + math.log(total / sum(row.count for row in rows))
    got = sum(weight * logit for weight, logit in zip(weights, logits, strict=True)) / total
    factor = due / got if got != 0 else math.inf
    if not 1 / limit <= factor <= limit:
        factor = 1.0
    folds = [(i, weight / total) for i, weight in zip(sources, weights[1:], strict=True)]
    return fold(head, n, weights[0] / total, folds, key_scale=factor)
