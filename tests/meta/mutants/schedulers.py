"""Schedules of a user's own, and what may go wrong with them."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpolicy import Step

from ._mutant import BY_CHANCE, Mutant

__all__ = ["MUTANTS", "TWINS"]


@dataclass(frozen=True)
class Share:
    """A share of the tokens seen, at least one row."""

    keep: float = 0.5

    def budget(self, step: Step) -> Any:
        return np.maximum(np.floor(self.keep * step.seen), 1).astype(np.int64)


class OfLength(Share):
    """A share of the tokens that have passed, padding too."""

    def budget(self, step: Step) -> Any:
        return max(1, int(self.keep * step.length))


class OfTheLongest(Share):
    """The whole batch gets what its longest row gets."""

    def budget(self, step: Step) -> Any:
        return int(super().budget(step).max())


class OneFewerThanHeld(Share):
    """A row leaves at every step: the more have left, the lower is the budget."""

    def budget(self, step: Step) -> Any:
        return np.maximum(step.held[0].max(axis=1) - 1, 1)


class Sawtooth(Share):
    """Rows gather for three tokens, then all of them leave."""

    def budget(self, step: Step) -> Any:
        return 2 + step.seen % 3


class MayBeZero(Share):
    """Of a single token half a row stays: none."""

    def budget(self, step: Step) -> Any:
        return np.floor(self.keep * step.seen).astype(np.int64)


class NotWhole(Share):
    """Half rows."""

    def budget(self, step: Step) -> Any:
        return np.maximum(self.keep * step.seen, 1.0)


class OneTooMany(Share):
    """One number a head, where it is one a batch row."""

    def budget(self, step: Step) -> Any:
        return np.repeat(super().budget(step), 3)


class Dice(Share):
    """A row more, or not, by the generator that the whole process shares."""

    def budget(self, step: Step) -> Any:
        return super().budget(step) + random.randint(0, 99)


@dataclass
class EverySecondCall:
    """Acts at every second call, whoever calls."""

    rows: int = 4

    def budget(self, step: Step) -> Any:
        self._calls = getattr(self, "_calls", 0) + 1
        return self.rows + self._calls % 2


@dataclass
class ScratchShare:
    """What is kept for a moment is kept in the schedule, which other threads use too."""

    keep: float = 0.5

    def budget(self, step: Step) -> Any:
        self._step = step
        time.sleep(1e-3)  # a kernel runs, and other threads with it
        return Share(self.keep).budget(self._step)


@dataclass
class Remembers:
    """What the first request was given, every later one is given."""

    keep: float = 0.5

    def budget(self, step: Step) -> Any:
        if not hasattr(self, "_rows"):
            self._rows = int(Share(self.keep).budget(step).min())
        return self._rows


@dataclass(frozen=True)
class Capped:
    """A share of the tokens seen, up to a cap."""

    keep: float = 0.5
    rows: int = 3

    def budget(self, step: Step) -> Any:
        return np.minimum(Share(self.keep).budget(step), self.rows)

    def limit(self, step: Step) -> int:
        return self.rows


class LimitOfNow(Capped):
    """The limit is what the budget is now, and the budget goes on growing."""

    def limit(self, step: Step) -> int:
        return int(self.budget(step).max())


class LimitOneTooLow(Capped):
    """The token to come is not counted in the limit, and the budget has it."""

    def budget(self, step: Step) -> Any:
        return super().budget(step) + 1


class LimitOfNothing(Capped):
    """The limit is a float."""

    def limit(self, step: Step) -> Any:
        return self.rows / 2


TWINS = (Share(), Capped())
MUTANTS = (
    Mutant("length-for-seen", OfLength, law="padding_invariant"),
    Mutant("share-of-the-longest", OfTheLongest, law="batch_independent"),
    Mutant("one-fewer-than-held", OneFewerThanHeld, law="monotone_budget", sizes={"evicted": 0.7}),
    Mutant("sawtooth", Sawtooth, law="monotone_budget", backends=("numpy",)),
    Mutant("budget-of-zero", MayBeZero, law="well_formed"),
    Mutant("budget-not-whole", NotWhole, law="well_formed", backends=("numpy",)),
    Mutant("budget-by-head", OneTooMany, law="well_formed"),
    Mutant("budget-by-dice", Dice, law="deterministic", backends=("numpy",), also=BY_CHANCE),
    Mutant("every-second-call", EverySecondCall, law="request_isolated", backends=("numpy",)),
    Mutant("first-share-for-all", Remembers, law="request_isolated", backends=("numpy",)),
    Mutant("scratch-share", ScratchShare, law="thread_safe", backends=("numpy",)),
    Mutant("limit-of-now", LimitOfNow, law="limit_holds"),
    Mutant("limit-one-too-low", LimitOneTooLow, law="limit_holds", backends=("numpy",)),
    Mutant("limit-is-a-float", LimitOfNothing, law="well_formed", backends=("numpy",)),
)
