"""Elastic Cache (arXiv 2407.18121) and the alternatives of its ablations."""

from __future__ import annotations

from .common import Head, Inputs, Now, Outcome, Row, budget, simulate
from .folding import Into, by_target, fold, most_similar
from .selection import best, stays
from .statistics import asked, masses, mean_of, moving

__all__ = ["elastic_cache"]


def elastic_cache(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    first: int = 1,
    last: int = 1,
    distance: int = 25,
    merge: str = "mean",
    statistic: str = "sum",
    sets: str = "layer",
    discard: str = "fixed",
) -> list[Outcome]:
    """Prompt: keep the most attended rows and average the others into them. Token: remove a row where one is too many.

    The attention on a row is summed over all queries, averaged over those that see it, or a moving average; it is the
    mean over the heads of a layer, or each head's own (``sets="head"``), or over the layers of the prompt too
    ("shared").

    A row that leaves goes into the nearest kept row that is not protected (and is dropped where there is none), or into
    the one of the most similar key ("cluster"), or nowhere ("evict").

    While decoding, the first rows stay, and the row that leaves is the one at ``p = max(kept_prompt - distance,
    first)``: the p oldest stay, of the others the latest; or simply the oldest ("recent"); or the one that was paid
    the least ("frequency").
    """
    frozen = 0

    def statistics(now: Now) -> list[list[list[float]]]:
        scores = []
        for heads in now.layers:
            lines = [masses(head) for head in heads]
            if statistic == "mean":
                lines = [[row.mass / asked(row, now.seen) for row in head] for head in heads]
            elif statistic == "moving":
                lines = [moving(head, now.seen, 0.9) for head in heads]
            scores.append(lines if sets == "head" else mean_of(lines))
        return scores

    def encode(now: Now, quota: int) -> None:
        nonlocal frozen
        scores = statistics(now)
        if sets == "shared":
            mean = mean_of([lines[0] for lines in scores])
            scores = [[line] * len(lines) for line, lines in zip(mean, scores, strict=True)]
        for heads, lines in zip(now.layers, scores, strict=True):
            for h, head in enumerate(heads):
                kept = stays(head, lines[h], quota, first=first, last=last)
                moves: list[Into] = []
                if merge == "mean":
                    moves = _nearest(head, [n for n in kept if first <= n < len(head) - last], kept)
                elif merge == "cluster":
                    moves = most_similar(head, kept)
                heads[h] = [_mean(head, n, into) for n, into in by_target(kept, moves).items()]
                frozen = max(len(kept) - distance, first)

    def decode(now: Now, quota: int) -> None:
        scores = statistics(now)
        for layer, heads in enumerate(now.layers):
            for h, head in enumerate(heads):
                if discard == "fixed":
                    worth = [float("inf") if n < frozen else row.position for n, row in enumerate(head)]
                elif discard == "recent":
                    worth = [row.position for row in head]
                else:
                    worth = scores[layer][h]
                protected = min(first, len(head))
                others = best(worth, range(protected, len(head)), quota - protected)
                heads[h] = [row for n, row in enumerate(head) if n < protected or n in others]

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        if now.decoding:
            decode(now, quota)
        else:
            encode(now, quota)

    return simulate(inputs, act)


def _nearest(head: Head, anchors: list[int], kept: list[int]) -> list[Into]:
    """Every row that leaves with the anchor nearest by position, ties to the earlier."""
    moves = []
    for n, row in enumerate(head):
        if n not in kept and anchors:
            target = min(anchors, key=lambda anchor: (abs(head[anchor].position - row.position), anchor))
            moves.append(Into(n, target, 0.0))
    return moves


def _mean(head: Head, n: int, moves: list[Into]) -> Row:
    """The mean of a row and those that go into it, over the tokens that they stand for."""
    tokens = head[n].count + sum(head[move.source].count for move in moves)
    folds = [(move.source, head[move.source].count / tokens) for move in moves]
    return fold(head, n, head[n].count / tokens, folds)
