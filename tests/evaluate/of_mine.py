"""What a user brings along: a scorer, a policy, a function of the budget, a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import kvpolicy
from kvpolicy import CacheView, Policy, Scores, Step
from kvpolicy_hf.evaluate import Sample, Subject

ROWS = kvpolicy.h2o(rows=24)


@dataclass(frozen=True)
class LoudValues:
    """Ten lines."""

    power: float = 1.0

    def score(self, view: CacheView, step: Step) -> Scores:
        return view.xp.linalg.vector_norm(view.values, axis=-1) ** self.power


def half_of_h2o(keep: float) -> Policy:
    return kvpolicy.h2o(keep=keep / 2)


@dataclass(frozen=True)
class Echo:
    """Two prompts of text without a right answer."""

    headline: Literal["correct"] = "correct"

    def samples(self, subject: Subject, count: int, seed: int, /) -> Sequence[Sample]:
        return [Sample((f"password {word} .", "what is the password"), None, 4) for word in ("cat", "dog")[:count]]

    def score(self, said: str, sample: Sample, /) -> float:
        return 0.0


LIST = [1, 2]
