"""A needle in a haystack: one sentence with a number in a long text, and the question for it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from ..errors import EvaluationError
from ..subject import Subject
from ..task import Sample
from .continuation import texts_of

__all__ = ["Needle"]

THINGS = "garden harbour castle library museum tower bridge market station theatre".split()
NEEDLE = "The secret number of the {thing} is {number}."
TASK = "Here is a long text. Somewhere in it a secret number is told.\n\n{before}\n\n{needle}\n\n{after}"
QUESTION = "\n\nWhat is the secret number of the {thing}? Answer with the number alone."


@final
@dataclass(frozen=True, slots=True)
class Needle:
    """A secret number of five digits at a random place of a text; right if the answer tells it.

    Args:
        tokens: about how long the prompt is.
        source: the haystack, as of `Continuation`.
    """

    tokens: int = 1024
    source: str = "pydoc"

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or self.tokens < 128:
            raise EvaluationError(f"Needle(tokens={self.tokens!r}): tokens must be an integer >= 128.")

    @property
    def headline(self) -> Literal["correct"]:
        """Whether the number was found."""
        return "correct"

    def samples(self, subject: Subject, count: int, seed: int, /) -> Sequence[Sample]:
        """Haystacks from different places of the source; depth and number are drawn.

        Raises:
            EvaluationError: if the source is shorter than one haystack.
        """
        rng = np.random.default_rng((seed, self.tokens))
        lines = [line for _, text in texts_of(self.source) for line in text.splitlines() if line.strip()]
        costs = [len(ids) + 1 for ids in subject.tokenizer(lines, add_special_tokens=False).input_ids]
        room = self.tokens - 80  # for the needle, the question and the chat's own words
        if sum(costs) < 2 * room:
            raise EvaluationError(f"{self!r}: the source has {sum(costs)} tokens, too few for haystacks of {room}.")
        last = len(lines) - 1
        while sum(costs[last:]) < room:
            last -= 1
        return [self._sample(rng, lines, costs, room, last) for _ in range(count)]

    def score(self, said: str, sample: Sample, /) -> float:
        """1.0 if the number stands in the answer."""
        return float(str(sample.answer) in said.replace(",", ""))

    def _sample(
        self, rng: np.random.Generator, lines: Sequence[str], costs: Sequence[int], room: int, last: int
    ) -> Sample:
        start = int(rng.integers(last + 1))
        end, used = start, 0
        while used + costs[end] <= room:
            used += costs[end]
            end += 1
        place = start + int(rng.integers(end - start + 1))
        number, thing = str(rng.integers(10_000, 100_000)), str(rng.choice(THINGS))
        told = NEEDLE.format(thing=thing, number=number)
        hay = TASK.format(before="\n".join(lines[start:place]), needle=told, after="\n".join(lines[place:end]))
        return Sample((hay + QUESTION.format(thing=thing),), number, new_tokens=16)
