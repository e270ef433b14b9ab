"""One batch of samples under one arm after the other; the full cache comes first, and the others are held to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from kvpolicy import KVPolicyError

from ..simulate import Record, replay
from . import metrics
from .arms import FULL, Arm
from .code import code_of
from .ledger import Ledger, Unit
from .passes import Forced, Generated, force, generate
from .recording import record_answer
from .subject import Subject
from .task import Sample, Task

__all__ = ["Batch"]


class Batch:
    """Samples that go through the model together.

    Args:
        subject: the model.
        name: of the task.
        task: the task.
        samples: the samples.
        start: index of the first one within its task.
        recorded: how many of them, from the first on, are also replayed.
        ledger: where what was measured goes; what it has is not measured again.
    """

    def __init__(
        self,
        subject: Subject,
        name: str,
        task: Task,
        samples: Sequence[Sample],
        start: int,
        recorded: int,
        ledger: Ledger,
    ) -> None:
        self.subject, self.name, self.task, self.samples = subject, name, task, samples
        self.start, self.recorded, self.ledger = start, recorded, ledger
        self._records: dict[int, Record] = {}

    def unit(self, arm: Arm) -> Unit:
        """What the ledger calls this batch under an arm; other code of a user's own is another unit."""
        stop = self.start + len(self.samples)
        task = f"{self.name}: {self.task!r}{code_of(self.task)}"
        return Unit(task, self.start, stop, f"{arm.label} {arm.keep} {arm.policy!r}{code_of(arm.policy)}")

    def measure(self, arm: Arm) -> None:
        """Measure the batch under an arm, unless that is done."""
        unit = self.unit(arm)
        if unit in self.ledger.done:
            return
        if arm != FULL:
            self.measure(FULL)
        try:
            rows, said, top = self._rows(arm)
        except KVPolicyError as error:
            if arm == FULL:
                raise
            self.ledger.add(unit, failure=str(error))
            return
        if arm == FULL:
            self.ledger.add(unit, rows, said=said, top=top)
        else:
            self.ledger.add(unit, rows)

    def forget(self) -> None:
        """Let go of the inputs and the records: no further arm is measured."""
        self._records.clear()
        self.__dict__.pop("_inputs", None)

    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        return self.subject.encode([sample.parts for sample in self.samples])

    @cached_property
    def _new_tokens(self) -> int:
        return max(sample.new_tokens for sample in self.samples)

    @cached_property
    def _full(self) -> dict[str, Any]:
        """What the full cache gave: its rows, the tokens that it said, and those that it held most likely."""
        return self.ledger.done[self.unit(FULL)]

    def _answers(self, said: list[list[int]]) -> list[list[int]]:
        """What is forced: the right answers, and where there is none what the full cache said."""
        return [
            said[row] if sample.answer is None else self.subject.tokens(sample.answer)
            for row, sample in enumerate(self.samples)
        ]

    def _rows(self, arm: Arm) -> tuple[list[dict[str, Any]], list[list[int]], list[list[int]]]:
        """The rows of the samples under an arm, the tokens that it said, and those that it held most likely."""
        generated = None
        if self._new_tokens:
            generated = generate(self.subject, self._inputs, arm.policy, self._new_tokens)
        said = generated.tokens if generated else [[] for _ in self.samples]
        full_said = said if arm == FULL else self._full["said"]
        answers = self._answers(full_said)
        forced = force(self.subject, self._inputs, arm.policy, answers) if any(answers) else None
        top = forced.top if forced else [[] for _ in self.samples]
        full_top = top if arm == FULL else self._full["top"]
        rows = [
            self._row(arm, row, generated, forced, answers[row], full_said[row], full_top[row])
            for row in range(len(self.samples))
        ]
        return rows, said, top

    def _row(
        self,
        arm: Arm,
        number: int,
        generated: Generated | None,
        forced: Forced | None,
        answer: list[int],
        full_said: list[int],
        full_top: list[int],
    ) -> dict[str, Any]:
        sample, index = self.samples[number], self.start + number
        run = generated or forced
        if run is None:
            raise AssertionError("a sample with neither an answer nor new tokens")  # held by `Sample`
        count = len(self.samples)
        row: dict[str, Any] = {
            "task": self.name,
            "sample": index,
            "group": sample.group or str(index),
            "policy": arm.label,
            "keep": arm.keep,
            "prompt_tokens": int(self._inputs["attention_mask"][number].sum()),
            "kv_bytes": run.report.kv_bytes // count,
            "full_kv_bytes": run.report.full_kv_bytes // count,
            "seconds": run.seconds / count,
            "peak_bytes": run.peak_bytes,
            "answer": sample.answer if isinstance(sample.answer, str) else None,
        }
        if generated is not None and sample.new_tokens:
            tokens = generated.tokens[number]
            said = self.subject.text(tokens)
            row["said"], row["new_tokens"] = said, len(tokens)
            row["same"] = metrics.same_until(tokens, full_said)
            row["rouge"] = metrics.rouge_l(said, self.subject.text(full_said))
            if sample.answer is not None:
                row["correct"] = self.task.score(said, sample)
        if forced is not None and answer:
            nats = forced.nats[number]
            full_nats = nats if arm == FULL else self._full["rows"][number]["nats"]
            row["nats"], row["scored"] = nats, len(answer)
            row["agreement"] = metrics.agreement(forced.top[number], full_top)
            likelihood = metrics.kept_likelihood(nats, full_nats, len(answer))
            row["quality"] = row.get("correct") if self.task.headline == "correct" else likelihood
            if number < self.recorded and len(answer) > 1:
                row["mass"], row["error"] = self._replayed(arm, number, answer)
        return row

    def _replayed(self, arm: Arm, number: int, answer: list[int]) -> tuple[float, float] | tuple[None, None]:
        """Attention mass and output error, means over steps and layers; nothing where a replay cannot say it."""
        if number not in self._records:
            self._records[number] = record_answer(self.subject, self.samples[number], answer)
        try:
            told = replay(self._records[number], arm.policy)
        except KVPolicyError:
            return None, None
        return float(told.mass.mean()), float(told.error.mean())
