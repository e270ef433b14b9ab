"""A law: a function of a component and an example that raises where it does not hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

from .._errors import PolicyError
from ._outcome import BrokenLawError, Place
from ._raised import raised_at
from ._reproducer import reproducer
from ._subject import KINDS, Example, Subject, subject_of
from .requests import Request
from .tables import Table
from .traces import Trace

__all__ = ["ARRAYS", "MERGERS", "PLANNERS", "STAGES", "ConformanceError", "Law", "law"]

STAGES = tuple(name for name in KINDS if name not in ("Policy", "Backend"))
ARRAYS = tuple(name for name in KINDS if name not in ("Policy", "Scheduler"))  # that see the rows of one table
MERGERS = ("Merger", "Assigner", "Weigher")
PLANNERS = (*MERGERS, "Policy")  # that make plans


class ConformanceError(AssertionError):
    """A component breaks a law.

    Attributes:
        law: its name.
        component: what breaks it.
        place: layer, batch row, head, token, pass.
        detail: what was found there and what is due.
        script: a program that shows it, to paste into a file.
    """

    def __init__(self, law: Law, component: Any, place: Place, detail: str, at: str, script: str) -> None:
        self.law, self.component, self.place, self.detail, self.script = law.name, component, place, detail, script
        indented = "\n".join(f"    {line}" for line in script.splitlines())
        super().__init__(f"{component!r} breaks {law.name}: {law.formula}\n  {at}\n\nTo see it again:\n\n{indented}\n")


@final
@dataclass(frozen=True, eq=False)
class Law:
    """A law of `kvpolicy.testing.checks`; call it with a component and an example to try it once.

    Attributes:
        name: of the function.
        kinds: names of the kinds of component that it is about.
        structural: whether the laws behind it make no sense where it is broken.
        after: further laws whose failure explains one of this.
        effort: share of a profile's examples that it is tried on, for a law that is slow to try.
        least: sizes that an example must have at least for it to say anything.
        shown: sizes of the example that a failure is shown on, if it fails there; half of the examples have them.
        on: what it is tried on; None: a `Request` for a policy, a `Table` for a stage or a backend.
    """

    name: str
    kinds: tuple[str, ...]
    structural: bool
    after: tuple[str, ...]
    effort: float
    least: Mapping[str, int]
    shown: Mapping[str, int]
    on: type[Table | Request | Trace] | None
    _unless: Callable[[Subject], str | None]
    _function: Callable[[Subject, Any], None]

    @property
    def formula(self) -> str:
        """The first line of the docstring: the law in one sentence."""
        return (inspect.getdoc(self._function) or "").partition("\n")[0]

    def __repr__(self) -> str:
        return f"checks.{self.name}"

    def example_type(self, subject: Subject) -> type[Table | Request | Trace]:
        """What it is tried on."""
        return self.on or (Request if subject.kind.name == "Policy" else Table)

    def silent_about(self, subject: Subject) -> str | None:
        """Why the law says nothing about a component; None where it does."""
        if subject.kind.name not in self.kinds:
            return f"not about a component of kind {subject.kind.name}"
        return self._unless(subject)

    def __call__(self, component: Any, example: Example, *, backend: str = "torch") -> None:
        """Try it once.

        Args:
            component: a policy, a pipeline, a stage or a backend.
            example: a `Table` for a stage or backend, a `Request` for a policy.
            backend: where, such as ``"numpy"``, ``"torch"`` or ``"torch:cuda"``.

        Raises:
            ConformanceError: if the law does not hold.
            PolicyError: if it says nothing about the component, or is tried on another kind of example.
        """
        self.hold(subject_of(component, backend), component, example, backend)

    def hold(self, subject: Subject, component: Any, example: Example, backend: str) -> None:
        """Try it on a subject, which may remember what earlier laws saw."""
        if (silent := self.silent_about(subject)) is not None:
            raise PolicyError(f"checks.{self.name}({component!r}, ...): the law does not apply ({silent}).")
        if not isinstance(example, wanted := self.example_type(subject)):
            raise PolicyError(
                f"checks.{self.name}({component!r}, {example!r}): it is tried on a {wanted.__name__}, not a "
                f"{type(example).__name__}. Hint: {wanted.__name__}()."
            )
        try:
            self._function(subject, example)
        except BrokenLawError as broken:
            shown = getattr(broken, "example", example)
            raise ConformanceError(
                self,
                component,
                broken.place,
                broken.detail,
                str(broken),
                reproducer(self.name, component, shown, backend),
            ) from None
        except Exception as error:
            detail = f"raised {type(error).__name__}: {error}{raised_at(error)}"
            script = reproducer(self.name, component, example, backend)
            raise ConformanceError(self, component, Place(), detail, detail, script) from error


def law(
    *kinds: str,
    structural: bool = False,
    after: tuple[str, ...] = (),
    effort: float = 1.0,
    least: Mapping[str, int] = MappingProxyType({}),
    shown: Mapping[str, int] = MappingProxyType({}),
    on: type[Table | Request | Trace] | None = None,
    unless: Callable[[Subject], str | None] = lambda _: None,
) -> Callable[[Callable[[Subject, Any], None]], Law]:
    """Make a function of a `Subject` and an example a law about these kinds."""

    def make(function: Callable[[Subject, Any], None]) -> Law:
        made = Law(function.__name__, kinds, structural, after, effort, least, shown, on, unless, function)
        object.__setattr__(made, "__doc__", function.__doc__)
        return made

    return make
