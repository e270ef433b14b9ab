"""Intervals by the bootstrap over groups: samples that share a picture or a text are drawn together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from scipy.stats import bootstrap  # type: ignore[import-untyped]

from .definitions import CONFIDENCE
from .errors import EvaluationError

__all__ = ["Estimates", "Sums", "intervals"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

FEWEST = 100  # resamples; the ends of a 95% interval lie between the third and the fourth of these, from either side
CELLS = 4_000_000  # the most numbers that an array of one batch of resamples may have
ROUNDING = 1e-11  # what the order of a sum changes, relative to the value
LARGEST = 200.0  # nats a token, more than any softmax gives; the exponential still leaves charts room to scale


@final
@dataclass(frozen=True, slots=True)
class Sums:
    """What a metric divides, summed over the samples of a group.

    Attributes:
        top: float64 [arms, groups].
        base: float64 [arms, groups]; 0 where the arm has no sample in the group.
    """

    top: Floats
    base: Floats

    def over(self, blocks: Sequence[Integers], counts: Sequence[Floats], *, ratio: bool) -> Floats:
        """float64 [arms, draws]: mean over the blocks of sum(top) / sum(base), each group ``counts`` times.

        Args:
            blocks: the groups of each stratum, int64 [groups of it].
            counts: how often each is drawn, float64 [draws, groups of it] for each stratum.
            ratio: give the exponential.
        """
        ratios = [
            (self.top[:, block] @ count.T) / (self.base[:, block] @ count.T)
            for block, count in zip(blocks, counts, strict=True)
        ]
        mean: Floats = sum(ratios[1:], ratios[0]) / len(ratios)  # a block that is not drawn from has one column
        return np.exp(np.minimum(mean, LARGEST)) if ratio else mean


@final
@dataclass(frozen=True, slots=True)
class Estimates:
    """A value and its interval, float64 [arms] each."""

    value: Floats
    low: Floats
    high: Floats


def intervals(
    sums: Sums,
    strata: Integers,
    *,
    minus: Sums | None = None,
    ratio: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimates:
    """Values of several arms with 95% percentile intervals.

    Groups are drawn with replacement, as many as there are and within their stratum; an arm's are those where it has a
    sample. A stratum of one group stays as it is. Arms with the same groups share their resamples.

    Args:
        sums: of every arm in every group.
        strata: int64 [groups], the task of each group; tasks count alike.
        minus: of what each arm is compared with, on the same samples; the value is then the difference.
        ratio: the value is the exponential of the mean over strata; else that mean.
        resamples: how many.
        seed: of the draws; the same seed gives the same intervals.

    Raises:
        EvaluationError: for fewer than 100 resamples.
    """
    if resamples < FEWEST:
        raise EvaluationError(
            f"resamples={resamples} are too few for a 95% interval. Hint: {FEWEST} or more; 2000 is usual."
        )
    result = Estimates(*(np.empty(len(sums.top)) for _ in range(3)))
    patterns, pattern_of = np.unique(sums.base > 0, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        arms = np.flatnonzero(pattern_of == number)
        blocks = [np.flatnonzero(pattern & (strata == stratum)) for stratum in np.unique(strata[pattern])]
        pair = [Sums(part.top[arms], part.base[arms]) for part in (sums, minus) if part is not None]
        found = _of_one_pattern(pair, blocks, ratio, resamples, seed)
        result.value[arms], result.low[arms], result.high[arms] = found.value, found.low, found.high
    return result


def _of_one_pattern(
    pair: Sequence[Sums], blocks: Sequence[Integers], ratio: bool, resamples: int, seed: int
) -> Estimates:
    """The same for arms that have samples in the same groups, those of the blocks."""
    once = [np.ones((1, len(block))) for block in blocks]
    drawn = [number for number, block in enumerate(blocks) if len(block) > 1]

    def statistic(*draws: Integers, axis: int) -> Floats:
        counts = list(once)
        for number, indices in zip(drawn, draws, strict=True):
            counts[number] = _counts(indices)
        first, *second = (part.over(blocks, counts, ratio=ratio) for part in pair)
        return first - second[0] if second else first

    value = statistic(*(np.arange(len(blocks[number]))[None] for number in drawn), axis=-1)[:, 0]
    if not drawn:
        return Estimates(value, value, value)
    widest = max(len(value), *map(len, blocks))
    interval = bootstrap(
        tuple(np.arange(len(blocks[number])) for number in drawn),
        statistic,
        n_resamples=resamples,
        batch=max(CELLS // widest, 1),
        vectorized=True,
        paired=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    scale = np.max([np.abs(part.over(blocks, once, ratio=ratio)[:, 0]) for part in pair], axis=0)
    low, high = (np.where(np.abs(end - value) <= ROUNDING * scale, value, end) for end in (interval.low, interval.high))
    return Estimates(value, low, high)


def _counts(indices: Integers) -> Floats:
    """float64 [draws, groups]: how often each group was drawn, from int64 [draws, groups]."""
    draws, groups = indices.shape
    flat = (indices + groups * np.arange(draws)[:, None]).ravel()
    return np.bincount(flat, minlength=draws * groups).reshape(draws, groups).astype(np.float64)
