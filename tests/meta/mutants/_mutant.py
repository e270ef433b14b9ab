"""What a mutant is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

__all__ = ["BY_CHANCE", "COMPETING", "Mutant"]

# Examples in which some rows stay and others leave: elsewhere a ranking has nothing to say.
COMPETING = {"tokens": 8, "quota": 3}

# What laws say of a component that gives another answer every time: each compares two answers.
BY_CHANCE = (
    "thread_safe",
    "request_isolated",
    "monotone_budget",
    "merge_linear",
    "slot_equivariant",
    "head_equivariant",
    "head_independent",
    "padding_invariant",
    "batch_independent",
    "chunk_invariant",
    "dtype_stable",
    "agrees_with_numpy",
)


@dataclass(frozen=True, eq=False)
class Mutant:
    """A component that is wrong in one way.

    Attributes:
        name: of the fault.
        make: makes the component.
        law: must kill it.
        backends: where it is wrong.
        also: further laws of which a user may see a failure, though all are tried in order.
        sizes: what examples must have for the fault to show often enough, so that it does not survive by chance.
        patches: faults of the engine: ``(owner, attribute, what stands there instead)``.
    """

    name: str
    make: Callable[[], Any]
    law: str
    backends: tuple[str, ...] = ("torch",)
    also: tuple[str, ...] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict)
    patches: tuple[tuple[Any, str, Any], ...] = ()

    @contextmanager
    def at_work(self) -> Iterator[Any]:
        """The component, with the engine patched."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, instead in self.patches:
                patch.setattr(owner, name, instead)
            yield self.make()
