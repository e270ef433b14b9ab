"""Scores by chance, the baseline of baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from .._check import check_count
from .._hash import uniform
from .._protocols import ImportanceScorer
from .._repr import constructor_repr
from .._step import Step
from .._types import CacheView, Scores

__all__ = ["Noise"]


@final
@dataclass(frozen=True, slots=True)
class Noise(ImportanceScorer):
    """A number in [0, 1) for each token and layer, the same in all heads and batch rows, and in every run.

    Padding is not counted: a row of a padded batch keeps what it keeps alone.

    Args:
        seed: another seed, other numbers.

    Raises:
        PolicyError: if the seed is not an integer >= 0.
    """

    seed: int = 0

    alike_heads: ClassVar[bool] = True
    reads_vectors: ClassVar[bool] = False

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Noise", "seed", self.seed)

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """A hash of seed, layer and place among the tokens seen."""
        return uniform(view.positions, step.padding, seed=self.seed, layer=view.layer)
