"""The whole engine against a slow, obvious model of it."""

from __future__ import annotations

from .._law import law
from .._subject import Subject
from ..traces import Trace, replay

__all__ = ["agrees_with_model"]


@law("Policy", on=Trace, after=("request_isolated", "chunk_invariant"), effort=0.4)
def agrees_with_model(subject: Subject, example: Trace) -> None:
    """Tables, registers, archives and books after every operation are those of lists of rows, changed by the formula.

    Operations are prompts, chunks, decode steps, further turns, reordering for beams, cropping and starting over. Two
    laws that it would break too come first.
    """
    replay(subject.fresh(), example, backend=subject.where)
