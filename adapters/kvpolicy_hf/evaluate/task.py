"""What a task is: samples, each a prompt with its right answer, and how an answer is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import EvaluationError
from .subject import Part, Subject

__all__ = ["Sample", "Task"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One prompt.

    Attributes:
        parts: texts and pictures in their order; or token ids alone, which go into the model as they are.
        answer: the right answer, as text or token ids; None: the full cache's own answer stands for it.
        new_tokens: the longest answer that is generated; 0: none is, and only the likelihood of ``answer`` is measured.
        group: samples of one group (one picture, one text) are not independent; empty: every sample by itself.
    """

    parts: tuple[Part, ...]
    answer: str | tuple[int, ...] | None = None
    new_tokens: int = 0
    group: str = ""

    def __post_init__(self) -> None:
        if not self.parts:
            raise EvaluationError("Sample(parts=()): a prompt has at least one part.")
        if type(self.new_tokens) is not int or self.new_tokens < 0:
            raise EvaluationError(f"Sample(new_tokens={self.new_tokens!r}): new_tokens must be an integer >= 0.")
        if not self.new_tokens and not self.answer:
            raise EvaluationError(
                f"Sample(answer={self.answer!r}, new_tokens=0): there is nothing to measure. "
                f"Hint: a right answer, or new_tokens=32."
            )


class Task(Protocol):
    """Something to measure a policy by: a frozen value that prints as its own constructor."""

    @property
    def headline(self) -> Literal["correct", "likelihood"]:
        """What ``quality`` is: the score of the generated answer, or how likely the right answer stays."""
        ...

    def samples(self, subject: Subject, count: int, seed: int, /) -> Sequence[Sample]:
        """Draw ``count`` samples; the first n of a longer draw are those of a draw of n.

        Raises:
            EvaluationError: if the model does not fit the task, or there are not so many samples.
        """
        ...

    def score(self, said: str, sample: Sample, /) -> float:
        """How good a generated answer is, from 0 to 1."""
        ...
