"""How two answers are compared, and what is left of a likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

__all__ = ["agreement", "exact", "kept_likelihood", "rouge_l", "same_until"]


def exact(said: str, wanted: str) -> float:
    """1.0 if the words are the same, whatever white space is between them."""
    return float(said.split() == wanted.split())


def rouge_l(said: str, wanted: str) -> float:
    """ROUGE-L F1 of two texts, 0 to 1 (Lin, 2004); words as rouge-score cuts them. Equal texts have 1."""
    if said.split() == wanted.split():
        return 1.0
    return float(_scorer().score(wanted, said)["rougeL"].fmeasure)


def same_until(said: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens two answers begin with in common: the place of the first one that differs."""
    for place, (one, other) in enumerate(zip(said, wanted, strict=False)):
        if one != other:
            return place
    return min(len(said), len(wanted))


def agreement(top: Sequence[int], wanted: Sequence[int]) -> float:
    """The share of places at which the most likely token is the same; both were forced to the same answer."""
    return sum(one == other for one, other in zip(top, wanted, strict=True)) / len(wanted)


def kept_likelihood(nats: float, full_nats: float, scored: int) -> float:
    """The likelihood of an answer under a policy, per token (geometric mean), as a share of the full cache's."""
    return math.exp((full_nats - nats) / scored)


@cache
def _scorer() -> Any:
    return RougeScorer(["rougeL"])
