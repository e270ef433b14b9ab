"""A component under test: which kind it is, on which backend, and how it is run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np

from .._errors import BackendUnavailableError, PolicyError
from .._policy import Pipeline, Policy
from .._protocols import Backend
from ..backends import backend_by_name
from ..schedulers import FixedRows
from . import _drivers
from ._drivers import Chosen, Planned
from ._memo import Memo
from ._outcome import Outcome
from ._places import place_of
from ._scene import Scene
from .requests import Request, Stream
from .tables import Table
from .traces import Trace

__all__ = ["KINDS", "Example", "Kind", "Subject", "kind_of", "subject_of"]

Example = Table | Request | Trace


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of component.

    Attributes:
        name: that of its protocol.
        method: by which it is known.
        run: on arrays, ``run(component, scene or stream, ops, device)``.
    """

    name: str
    method: str
    run: Callable[..., Outcome]


# In this order: a backend scores nothing, and a policy is known by its class.
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("Policy", "", _drivers.requested),
        Kind("Backend", "attention_mass", _drivers.verbs),
        Kind("ImportanceScorer", "score", _drivers.scored),
        Kind("Scheduler", "budget", _drivers.budgeted),
        Kind("Allocator", "allocate", _drivers.allocated),
        Kind("Selector", "select", _drivers.selected),
        Kind("Merger", "merge", _drivers.merged),
        Kind("Assigner", "assign", _drivers.merged),
        Kind("Weigher", "weigh", _drivers.merged),
        Kind("Recaller", "recall", _drivers.recalled),
    )
}


@final
@dataclass(frozen=True)
class Subject:
    """A component and where it runs.

    Attributes:
        component: as it was given; `fresh` copies are what runs.
        kind: which protocol it has.
        ops: the backend.
        device: for that backend; None: its default.
        memo: what earlier laws made of the same examples; None: nothing is remembered.
    """

    component: Any
    kind: Kind
    ops: Backend
    device: str | None = None
    memo: Memo | None = field(default=None, repr=False, compare=False)

    @property
    def where(self) -> str:
        """The backend by name, with its device: ``"torch:cuda"``."""
        return self.ops.name if self.device is None else f"{self.ops.name}:{self.device}"

    def fresh(self) -> Any:
        """A copy that has never run."""
        return copy.deepcopy(self.component)

    def arrays(self, example: Example) -> Scene | Stream:
        """An example's arrays, with whatever columns the component says it needs."""

        def made() -> Scene | Stream:
            if isinstance(example, Request):
                return example.build()
            assert isinstance(example, Table)
            return example.build().needing(getattr(self.component, "needs", ()))

        return made() if self.memo is None else self.memo.arrays(example, made)

    def run(self, arrays: Scene | Stream, component: Any = None, **options: Any) -> Outcome:
        """What the component, or this copy of it, makes of the arrays."""

        def made() -> Outcome:
            copied = self.fresh() if component is None else component
            return self.kind.run(copied, arrays, self.ops, self.device, **options)

        if self.memo is None or component is not None or options:
            return made()
        return self.memo.recall("run", arrays, made)

    def plans(self, arrays: Scene | Stream) -> Sequence[Planned]:
        """Every plan that it makes, with its table."""

        def made() -> Sequence[Planned]:
            if isinstance(arrays, Scene):
                return list(_drivers.plans_of_merger(self.fresh(), arrays, self.ops, self.device))
            plans: list[Planned] = []
            _drivers.requested(self.fresh(), arrays, self.ops, self.device, plans.append)
            return plans

        return made() if self.memo is None else self.memo.recall("plans", arrays, made)

    def selections(self, arrays: Scene | Stream) -> Sequence[Chosen]:
        """Every selection that it makes."""

        def made() -> Sequence[Chosen]:
            if isinstance(arrays, Scene):
                return list(_drivers.selections_of_selector(self.fresh(), arrays, self.ops, self.device))
            return _drivers.selections_of_policy(self.fresh(), arrays, self.ops, self.device)

        return made() if self.memo is None else self.memo.recall("selections", arrays, made)

    def as_policy(self) -> Subject:
        """A scorer as a policy that goes by it, for the prompt and while decoding."""
        if self.kind.name == "Policy":
            return self
        pipeline = _drivers.hosted(schedule=FixedRows(3), score=self.component)
        return replace(self, component=Policy(prefill=pipeline, decode=pipeline), kind=KINDS["Policy"], memo=None)

    def has(self, dtype: str) -> bool:
        """Whether its backend has this dtype."""
        try:
            self.ops.from_host(np.zeros(1), dtype=dtype, device=self.device)
        except BackendUnavailableError:
            return False
        return True

    def elsewhere(self, backend: str) -> Subject:
        """The same component on another backend's default device."""
        return replace(self, ops=backend_by_name(backend), device=None, memo=None)


def subject_of(component: Any, backend: str = "torch") -> Subject:
    """A component on a backend: ``"numpy"``, ``"torch"``, or with a device, ``"torch:cuda"``.

    A pipeline is tried as the policy that has it for the prompt and for decoding.

    Raises:
        PolicyError: if it is no component, or several kinds at once.
    """
    if isinstance(component, Pipeline):
        component = Policy(prefill=component, decode=component)
    kind, (ops, device) = kind_of(component), place_of(backend)
    return Subject(component, kind, component if kind.name == "Backend" else ops, device)


def kind_of(component: Any) -> Kind:
    """Which kind a component is.

    Raises:
        PolicyError: if it is none, or several.
    """
    if isinstance(component, Policy):
        return KINDS["Policy"]
    if isinstance(component, type):
        raise PolicyError(
            f"{component.__name__} is a class; the kit checks an instance. Hint: {component.__name__}(...)."
        )
    if inspect.ismodule(component):  # numpy has a `select`, and is no selector
        raise PolicyError(f"{component.__name__!r} is a module; the kit checks an instance of a class in it.")
    found = [kind for kind in KINDS.values() if kind.method and callable(getattr(component, kind.method, None))]
    if len(found) == 1:
        return found[0]
    methods = ", ".join(f"{kind.method} ({kind.name})" for kind in KINDS.values() if kind.method)
    if not found:
        raise PolicyError(f"{component!r} is neither a Policy nor a stage: it has none of the methods {methods}.")
    raise PolicyError(
        f"{component!r} has the methods of several kinds: {', '.join(kind.name for kind in found)}. "
        f"Hint: one class for each."
    )
