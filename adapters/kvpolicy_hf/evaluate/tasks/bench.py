"""Questions that differ in where information lives, as the bench's model has learned to answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

from ...loading.bench import bench
from ..subject import Subject
from ..task import Sample
from ._pictures import check_named, check_sees

__all__ = ["BENCH_TASKS", "BenchQuestion"]

Style = Literal["google", "twitter"]

LABELS = (
    *("at/grid", "where/grid", "places/grid", "row/grid", "describe/grid"),
    *("at/photo", "where/photo", "describe/photo"),
    "count/crowd",
    *("decode/book", "recite/book", "find/book"),
    *("picture-at/several", "picture-where/several", "picture-describe/several"),
    "easy-vqa/easy-vqa",
)
# In other answers, every word after the first has to be found out; in these, every second one: "a1 cat a2 dog".
NOT_IN_PAIRS = ("count", "find", "picture-where")


@final
@dataclass(frozen=True, slots=True)
class BenchQuestion:
    """One kind of question about one kind of scene.

    Args:
        label: question and scene, such as ``"describe/photo"``, as the bench's README lists them.
        style: whose emoji; training has never seen Twitter's.
    """

    label: str = "describe/photo"
    style: Style = "google"

    def __post_init__(self) -> None:
        check_named("BenchQuestion", "label", self.label, LABELS)
        check_named("BenchQuestion", "style", self.style, get_args(Style))

    @property
    def headline(self) -> Literal["correct"]:
        """The share of what was to be found out."""
        return "correct"

    def samples(self, subject: Subject, count: int, seed: int, /) -> Sequence[Sample]:
        """Scenes that training does not draw, one question each.

        Raises:
            EvaluationError: if the model takes text alone.
            LoadingError: if ``kvpolicy-bench`` is not installed.
        """
        check_sees(self, subject)
        testing = bench("evaluate")
        (task,) = (task for task in bench("tasks").TASKS if task.label == self.label)
        drawn: Sequence[Any] = testing.samples(task, count, bench("world").FULL, self.style, testing.SEED + seed)
        return [Sample((*one.parts, one.question), one.answer, len(one.answer.split()) + 1) for one in drawn]

    def score(self, said: str, sample: Sample, /) -> float:
        """The share of the words to be found out that stand at their place: of a short answer, all or nothing."""
        step = 1 if self.label.partition("/")[0] in NOT_IN_PAIRS else 2
        given, right = (text.split()[1::step] for text in (said, str(sample.answer)))
        return sum(one == other for one, other in zip(given, right, strict=False)) / max(len(given), len(right))


def _name(label: str) -> str:
    asks, _, scene = label.partition("/")
    return f"bench-{asks}" if asks == scene else f"bench-{scene}-{asks}"


BENCH_TASKS = {_name(label): BenchQuestion(label) for label in LABELS}
