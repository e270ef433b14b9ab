"""The tasks that come with kvpolicy, by name; each is a small class of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kvpolicy import from_target

from ..errors import EvaluationError
from ..subject import Subject
from ..task import Task
from .bench import BENCH_TASKS, BenchQuestion
from .continuation import Continuation
from .emoji import EmojiQuestion
from .needle import Needle

__all__ = ["TASKS", "BenchQuestion", "Continuation", "EmojiQuestion", "Needle"]

TASKS: Mapping[str, Task] = {
    "grid-at": EmojiQuestion("grid", "at"),
    "grid-where": EmojiQuestion("grid", "where"),
    "grid-row": EmojiQuestion("grid", "row"),
    "grid-password": EmojiQuestion("grid", "password"),
    "photo-at": EmojiQuestion("photo", "at"),
    "photo-where": EmojiQuestion("photo", "where"),
    "photo-row": EmojiQuestion("photo", "row"),
    "photo-password": EmojiQuestion("photo", "password"),
    "pydoc": Continuation(),
    "needle-512": Needle(512),
    "needle-1k": Needle(1024),
    "needle-2k": Needle(2048),
    **BENCH_TASKS,
}

OF_LANGUAGE_MODELS = ("pydoc", "needle-512", "needle-1k")
OF_PICTURES = {
    "demo": tuple(name for name, task in TASKS.items() if isinstance(task, EmojiQuestion)),
    "bench": tuple(BENCH_TASKS),
}


def tasks_of(tasks: Sequence[str] | Mapping[str, Task] | None, subject: Subject) -> dict[str, Task]:
    """The tasks by name.

    Args:
        tasks: names of `TASKS`, ``"module:Name"``, or tasks by name; None: those that are made for the model.
        subject: the model.

    Raises:
        EvaluationError: for a name that is not there or comes twice, for what is no task, or where none is made for
            the model.
    """
    if isinstance(tasks, Mapping):
        return {name: _task(name, task) for name, task in tasks.items()}
    names: Sequence[str] = _default(subject) if tasks is None else tasks
    if len(set(names)) < len(names):
        raise EvaluationError(f"tasks: {list(names)} names one twice.")
    if not names:
        raise EvaluationError(f"tasks is empty; there are: {', '.join(TASKS)}.")
    found: dict[str, Task] = {}
    for name in names:
        if name in TASKS:
            found[name] = TASKS[name]
        elif ":" in name:
            found[name.partition(":")[2]] = _task(name, from_target(name))
        else:
            raise EvaluationError(
                f"no task {name!r}; there are: {', '.join(TASKS)}. Hint: module:Name for a task of your own."
            )
    return found


def _default(subject: Subject) -> Sequence[str]:
    if not subject.takes_pictures:
        return OF_LANGUAGE_MODELS
    if subject.name in OF_PICTURES:
        return OF_PICTURES[subject.name]
    raise EvaluationError(
        f"no tasks are made for {subject.name}. Hint: name some, such as module:Name; of kvpolicy's own, those about "
        f"pictures are made for the models {' and '.join(OF_PICTURES)}."
    )


def _task(name: str, task: object) -> Task:
    parts: tuple[Callable[..., object] | None, ...] = (getattr(task, "samples", None), getattr(task, "score", None))
    if not all(callable(part) for part in parts) or getattr(task, "headline", None) not in ("correct", "likelihood"):
        raise EvaluationError(
            f"task {name!r} is a {type(task).__name__}, which is no task: one has samples(subject, count, seed), "
            f"score(said, sample) and a headline, 'correct' or 'likelihood'."
        )
    return task  # type: ignore[return-value] # looked at above
