"""What tasks about pictures refuse alike."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import EvaluationError
from ..subject import Subject

__all__ = ["check_named", "check_sees"]


def check_named(task: str, name: str, value: object, known: Sequence[str]) -> None:
    """Raise unless an argument of a task is one of these names."""
    if value not in known:
        raise EvaluationError(f"{task}({name}={value!r}): {name} is one of {', '.join(known)}.")


def check_sees(task: object, subject: Subject) -> None:
    """Raise unless the model takes pictures."""
    if not subject.takes_pictures:
        raise EvaluationError(f"{task!r} shows pictures, and {subject.name} takes text alone.")
