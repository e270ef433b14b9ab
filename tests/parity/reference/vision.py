"""Methods for images: VL-Cache and AirCache."""

from __future__ import annotations

from .budgets import by_sparsity, by_strength_and_skew
from .common import Inputs, Now, Outcome, budget, simulate
from .selection import stays
from .statistics import elite_queries, paid_by, post_image, strong

__all__ = ["air_cache", "vl_cache"]


def vl_cache(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    recent: float = 0.1,
    threshold: float = 0.01,
) -> list[Outcome]:
    """VL-Cache (arXiv 2410.23317): after the prompt, what the queries after the last image row attend to, and the end.

    A layer whose attention is dense gets more: its budget follows the share of entries, of those that the same queries
    see, that reach ``threshold`` of the largest in their line.
    """

    def act(now: Now) -> None:
        k = budget(now.seen, keep, rows)
        if now.decoding or not now.holds_more_than(k):
            return
        queries = post_image(now.layers[0][0], now.seen)
        scores = [[paid_by(head, queries) for head in heads] for heads in now.layers]
        reached = [[strong(head, queries, threshold) for head in heads] for heads in now.layers]
        asked = [
            [[float(sum(query >= row.position for query in queries)) for row in head] for head in heads]
            for heads in now.layers
        ]
        shares = by_sparsity(now, k, reached, asked)
        for layer, heads in enumerate(now.layers):
            for h, head in enumerate(heads):
                kept = stays(head, scores[layer][h], shares[layer][h], recent=recent, exact=inputs.exact_sums)
                heads[h] = [head[n] for n in kept]

    return simulate(inputs, act)


def air_cache(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    window: int = 64,
    threshold: float = 0.1,
) -> list[Outcome]:
    """AirCache (arXiv 2503.23956): after the prompt, all text, and the image rows that the elite queries attend to."""

    def act(now: Now) -> None:
        k = budget(now.seen, keep, rows)
        if now.decoding or not now.holds_more_than(k):
            return
        scores = []
        for heads in now.layers:
            elite = elite_queries(heads, now.seen, window, threshold)
            scores.append([paid_by(head, elite) for head in heads])
        shares = by_strength_and_skew(now, k, scores)
        for layer, heads in enumerate(now.layers):
            for h, head in enumerate(heads):
                kept = stays(head, scores[layer][h], shares[layer][h], text=True, exact=inputs.exact_sums)
                heads[h] = [head[n] for n in kept]

    return simulate(inputs, act)
