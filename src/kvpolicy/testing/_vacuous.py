"""Passes that prove little: no example made the component drop a row, so no law about dropping had anything to hold."""

from __future__ import annotations

from typing import Any

from ._law import MERGERS, Law
from ._scene import Scene
from ._subject import Example, Subject

__all__ = ["VacuousPassWarning", "drops_a_row", "tells", "vacuous"]

# Of structural laws, which are always tried, those that look at what leaves: their examples are known afterwards.
_TELLING = ("keeps_selected", "within_quota")


class VacuousPassWarning(UserWarning):
    """A policy, a selector or a merger keeps the laws, and no example made it drop a row.

    Give it smaller arguments, or larger examples (``sizes=``), so that there is something to drop.
    """


def vacuous(component: Any) -> VacuousPassWarning:
    """The warning about a component."""
    return VacuousPassWarning(
        f"no example made {component!r} drop a row, so laws about dropping say nothing of it. "
        f"Hint: smaller arguments, or larger examples: sizes=."
    )


def tells(law: Law, subject: Subject) -> bool:
    """Whether the examples of a law show if the component ever drops a row. A full cache is not meant to."""
    policy = subject.component
    full = subject.kind.name == "Policy" and policy.prefill is None and policy.decode is None
    return law.name in _TELLING and not full


def drops_a_row(subject: Subject, example: Example) -> bool:
    """Whether an example makes the component drop a row; of a merger, whether it is given one that leaves."""
    arrays = subject.arrays(example)
    if isinstance(arrays, Scene) and subject.kind.name in MERGERS:
        return any(bool((layer.valid & ~layer.keep).any()) for layer in arrays.layers)
    return any(bool((chosen.valid & ~chosen.keep).any()) for chosen in subject.selections(arrays))
