"""Methods that look through a window of the latest queries: SnapKV, PyramidKV, AdaKV, HeadKV, TOVA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .budgets import adaptive_heads, in_proportion, pyramid
from .common import Inputs, Now, Outcome, budget, simulate
from .selection import keep_best
from .statistics import mean_of, pooled, window_mass

__all__ = ["ada_kv", "head_kv", "pyramid_kv", "snapkv", "tova"]

Scores = list[list[list[float]]]


def snapkv(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    window: int = 32,
    kernel: int = 7,
    pooling: str = "mean",
) -> list[Outcome]:
    """SnapKV (arXiv 2404.14469): once, after the prompt, the rows that its last queries attend to, and their own."""

    def quotas(now: Now, k: int, scores: Scores) -> list[list[int]]:
        return [[k] * len(heads) for heads in now.layers]

    return _after_the_prompt(inputs, keep, rows, window, kernel, pooling, quotas)


def pyramid_kv(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    window: int = 8,
    beta: float = 20.0,
    kernel: int = 7,
    pooling: str = "mean",
) -> list[Outcome]:
    """PyramidKV (arXiv 2406.02069): SnapKV with budgets that fall from layer to layer."""

    def quotas(now: Now, k: int, scores: Scores) -> list[list[int]]:
        return pyramid(now, k, beta=beta, least=window)

    return _after_the_prompt(inputs, keep, rows, window, kernel, pooling, quotas)


def ada_kv(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    window: int = 32,
    kernel: int = 7,
    pooling: str = "mean",
    floor: float = 0.2,
) -> list[Outcome]:
    """AdaKV (arXiv 2407.11550): SnapKV with budgets that each layer shares among its heads by their best rows."""

    def quotas(now: Now, k: int, scores: Scores) -> list[list[int]]:
        exact = inputs.exact_sums or window == 1
        return [adaptive_heads(lines, k, floor=floor, exact=exact) for lines in scores]

    return _after_the_prompt(inputs, keep, rows, window, kernel, pooling, quotas)


def head_kv(
    inputs: Inputs,
    *,
    table: Sequence[Sequence[float]],
    keep: float | None = None,
    rows: int | None = None,
    window: int = 32,
    kernel: int = 7,
    pooling: str = "mean",
) -> list[Outcome]:
    """HeadKV (arXiv 2410.19258): SnapKV with budgets in proportion to a table of [layer][head] weights."""

    def quotas(now: Now, k: int, scores: Scores) -> list[list[int]]:
        return in_proportion(now, k, table)

    return _after_the_prompt(inputs, keep, rows, window, kernel, pooling, quotas)


def _after_the_prompt(
    inputs: Inputs,
    keep: float | None,
    rows: int | None,
    window: int,
    kernel: int,
    pooling: str,
    quotas: Callable[[Now, int, Scores], list[list[int]]],
) -> list[Outcome]:
    def act(now: Now) -> None:
        k = budget(now.seen, keep, rows)
        if now.decoding or not now.holds_more_than(k):
            return
        scores = [
            [pooled(window_mass(head, now.seen, window, keep=True), kernel, pooling) for head in heads]
            for heads in now.layers
        ]
        for heads, lines, shares in zip(now.layers, scores, quotas(now, k, scores), strict=True):
            for h, head in enumerate(heads):
                heads[h] = keep_best(head, lines[h], shares[h], exact=inputs.exact_sums or window == 1)

    return simulate(inputs, act)


def tova(inputs: Inputs, *, keep: float | None = None, rows: int | None = None) -> list[Outcome]:
    """TOVA (arXiv 2401.06104): at every step the rows that the last query attends to, mean over a layer's heads."""

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        for heads in now.layers:
            scores = mean_of([window_mass(head, now.seen, 1, keep=False) for head in heads])
            for h, head in enumerate(heads):
                heads[h] = keep_best(head, scores[h], quota)

    return simulate(inputs, act)
