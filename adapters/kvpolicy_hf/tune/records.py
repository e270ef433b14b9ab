"""Records of a task's samples, for replays."""

from __future__ import annotations

from collections.abc import Mapping

from kvpolicy import full

from ..evaluate import EvaluationError, Subject, Task
from ..evaluate.passes import generate
from ..evaluate.recording import record_answer
from ..simulate import Record

__all__ = ["records_of"]


def records_of(subject: Subject, tasks: Mapping[str, Task], count: int, seed: int) -> list[Record]:
    """The first samples of every task, each with its right answer, or the full cache's own, forced.

    Raises:
        EvaluationError: if no answer has two tokens: the first comes out of the prompt, which no policy changes.
    """
    taken = []
    for task in tasks.values():
        for sample in task.samples(subject, count, seed):
            if sample.answer is None:
                answer = generate(subject, subject.encode([sample.parts]), full(), sample.new_tokens).tokens[0]
            else:
                answer = subject.tokens(sample.answer)
            if len(answer) > 1:
                taken.append(record_answer(subject, sample, answer))
    if not taken:
        raise EvaluationError(f"no answer of {', '.join(tasks)} has two tokens: there is nothing to replay.")
    return taken
