"""How the rows are shared among layers and heads: integers with an exact total."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .common import IMAGE, Now
from .selection import check_decided

__all__ = [
    "adaptive_heads",
    "apportion",
    "by_sparsity",
    "by_strength_and_skew",
    "by_variance",
    "in_proportion",
    "pyramid",
    "whole",
]

Scores = list[list[list[float]]]  # [layer][head][row]
TIE = 1e-9  # numbers nearer than this are equal: what a formula decides by must not depend on rounding


def apportion(weights: Sequence[float], total: int, caps: Sequence[int]) -> list[int]:
    """``total`` in proportion to the weights, none above its cap.

    What a cap leaves over is shared in proportion among the others, evenly where these weigh nothing. Everyone gets
    the whole part of its share, and the rows left then go to the largest remainders; ties go to the lower index.
    """
    assert total <= sum(caps)
    full: set[int] = set()
    while True:
        open_ = [i for i in range(len(weights)) if i not in full]
        left = total - sum(caps[i] for i in full)
        weight = sum(weights[i] for i in open_)
        share = {i: left * weights[i] / weight if weight > 0 else left / len(open_) for i in open_}
        over = {i for i in open_ if share[i] > caps[i] + TIE}
        if not over:
            break
        full |= over
    return whole([share.get(i, float(caps[i])) for i in range(len(weights))], total)


def whole(shares: Sequence[float], total: int) -> list[int]:
    """Shares that sum to ``total``, as integers: floors, then the largest remainders; ties go to the lower index."""
    floors = [math.floor(share + TIE) for share in shares]
    remainders = [round(share - floor, 9) for share, floor in zip(shares, floors, strict=True)]
    order = sorted(range(len(shares)), key=lambda i: (-remainders[i], i))
    for i in order[: total - sum(floors)]:
        floors[i] += 1
    assert sum(floors) == total
    return floors


def _per_layer(now: Now, weights: Sequence[float], rows: int) -> list[list[int]]:
    """Every layer in proportion to its weight, all heads of a layer alike; no head more than it holds."""
    caps = [min(len(head) for head in layer) for layer in now.layers]
    shares = apportion(weights, rows * len(now.layers), caps)
    return [[share] * len(layer) for share, layer in zip(shares, now.layers, strict=True)]


def pyramid(now: Now, rows: int, *, beta: float, least: int) -> list[list[int]]:
    """PyramidKV: ``least`` for every layer, the rest falling linearly down to ``rest / beta``, ``rest`` on average.

    Uniform where nothing can fall: a budget of ``least`` or less, one layer, or a prompt below twice the budget.
    """
    count = len(now.layers)
    if rows <= least or count == 1 or now.seen < 2 * rows:
        shares = [rows] * count
    else:
        rest = rows - least
        last = rest / beta
        first = 2 * rest - last
        falling = [least + first + (last - first) * layer / (count - 1) for layer in range(count)]
        shares = whole(falling, rows * count)
    return [[share] * len(layer) for share, layer in zip(shares, now.layers, strict=True)]


def by_variance(now: Now, rows: int, scores: Scores, *, exempt: Sequence[int] = ()) -> list[list[int]]:
    """D2O: variance of each head's scores, min-max over the heads of a layer, mean over them; softmax of minus that.

    Exempt layers keep all their rows, and the others share what these leave of the total.
    """
    spread = []
    for layer in scores:
        variance = []
        for line in layer:
            mean = sum(line) / len(line)
            variance.append(sum((score - mean) ** 2 for score in line) / len(line))
        low, high = min(variance), max(variance)
        scaled = [(one - low) / (high - low) if high - low > TIE * high else 0.0 for one in variance]
        spread.append(sum(scaled) / len(scaled))
    held = [len(heads[0]) for heads in now.layers]
    others = [n for n in range(len(held)) if n not in exempt]
    left = rows * len(held) - sum(held[n] for n in exempt)
    shares = apportion([math.exp(-spread[n]) for n in others], left, [held[n] for n in others])
    for n, share in zip(others, shares, strict=True):
        held[n] = share
    return [[share] * len(heads) for share, heads in zip(held, now.layers, strict=True)]


def by_sparsity(now: Now, rows: int, strong: Scores, asked: Scores) -> list[list[int]]:
    """VL-Cache: the share of a layer's attention that is strong, at least a hundredth."""
    weights = []
    for mine, all_ in zip(strong, asked, strict=True):
        entries = sum(sum(line) for line in all_)
        share = sum(sum(line) for line in mine) / entries if entries > 0 else 0.0
        weights.append(max(share, 0.01))
    return _per_layer(now, weights, rows)


def by_strength_and_skew(now: Now, rows: int, scores: Scores) -> list[list[int]]:
    """AirCache: the mean of a layer's share in the strength and in the skewness of the scores of image rows.

    Scores are the mean over the heads. Strength is their sum; skewness, their third standardised moment where that is
    positive. All rows count where there are no image rows.
    """
    strength, skewness = [], []
    for layer, lines in zip(now.layers, scores, strict=True):
        mean_line = [sum(line[n] for line in lines) / len(lines) for n in range(len(lines[0]))]
        images = [n for n, row in enumerate(layer[0]) if row.segment == IMAGE]
        values = [mean_line[n] for n in images or range(len(mean_line))]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        third = sum((value - mean) ** 3 for value in values) / len(values)
        strength.append(sum(values))
        spread = math.sqrt(variance)
        skew = third / spread**3 if spread > TIE * mean else 0.0
        skewness.append(skew if skew > TIE else 0.0)
    weights = [(a + b) / 2 for a, b in zip(_normalised(strength), _normalised(skewness), strict=True)]
    return _per_layer(now, weights, rows)


def _normalised(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total for value in values] if total > 0 else [1 / len(values)] * len(values)


def adaptive_heads(scores: list[list[float]], rows: int, *, floor: float, exact: bool = True) -> list[int]:
    """AdaKV: the heads of one layer by how many of the layer's best rows they hold, a share ``floor`` of it fixed."""
    heads = len(scores)
    flat = [(h, n) for h in range(heads) for n in range(len(scores[h]))]
    # Ties go to the later arrival, then to the lower head.
    order = sorted(flat, key=lambda place: (scores[place[0]][place[1]], place[1], -place[0]), reverse=True)
    top = order[: heads * rows]
    if 0 < len(top) < len(order):
        (h, n), (other, place) = top[-1], order[len(top)]
        check_decided(scores[h][n], scores[other][place], exact=exact)
    counts = [sum(1 for h, _ in top if h == head) for head in range(heads)]
    weights = [(1 - floor) * count + floor * rows for count in counts]
    return apportion(weights, heads * rows, [len(line) for line in scores])


def in_proportion(now: Now, rows: int, table: Sequence[Sequence[float]], *, capped: bool = True) -> list[list[int]]:
    """Every head of the model in proportion to its number in a table; if ``capped``, none gets more than it holds."""
    weights = [float(weight) for layer in table for weight in layer]
    total = rows * len(weights)
    caps = [len(head) if capped else total for layer in now.layers for head in layer]
    shares = iter(apportion(weights, total, caps))
    return [[next(shares) for _ in layer] for layer in now.layers]
