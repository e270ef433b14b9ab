"""What a law is tried on for a component, and what of it can be fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, final

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from .._check import closest
from .._errors import PolicyError
from . import strategies
from ._law import Law
from ._subject import Subject
from .machine import traces
from .requests import Request
from .tables import Table
from .traces import Trace

__all__ = ["Examples", "check_fixed", "drawn", "examples_of", "too_small"]


@final
@dataclass(frozen=True, slots=True)
class Examples:
    """What a law is tried on. Laws with equal ones are given the same examples.

    Attributes:
        kind: `Table`, `Request` or `Trace`.
        least: lower bounds of sizes.
        fixed: arguments that are not drawn.
        shown: further ones that half of the examples have, and the smallest failure if it can.
    """

    kind: type[Any]
    least: tuple[tuple[str, int], ...]
    fixed: tuple[tuple[str, Any], ...]
    shown: tuple[tuple[str, int], ...] = ()

    @property
    def strategy(self) -> st.SearchStrategy[Any]:
        """Draws them."""
        if self.kind is Trace:
            return traces(**dict(self.fixed))
        draw: Any = strategies.requests if self.kind is Request else strategies.tables
        least, fixed, shown = map(dict, (self.least, self.fixed, self.shown))
        drawn: st.SearchStrategy[Any] = draw(least=least, **fixed)
        return draw(least=least, **{**shown, **fixed}) | drawn if shown else drawn  # it shrinks towards the first

    def each(self, function: Callable[[Any], None], *, most: int, start: int) -> None:
        """Call a function with at most so many examples, from this seed on, and once it raises with ever smaller ones.

        What the smallest one raises comes through.
        """

        @settings(
            max_examples=most,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @seed(start)
        @given(self.strategy)
        def attempt(example: Any) -> None:
            function(example)

        attempt()


@lru_cache(maxsize=64)
def drawn(examples: Examples, most: int, start: int) -> Sequence[Any]:
    """Those that `Examples.each` would try. To draw them takes as long as to try a law on them."""
    found: list[Any] = []
    examples.each(found.append, most=most, start=start)
    return found


def examples_of(law: Law, subject: Subject, sizes: Mapping[str, int]) -> Examples:
    """The examples, of these sizes as far as they have them."""
    kind = law.example_type(subject)
    fixed = dict(_those_of(kind, sizes))
    # Layer by layer, so that one is enough, but for components and laws that compare layers.
    across = subject.kind.name in ("ImportanceScorer", "Allocator") or "layers" in law.least
    if kind is Table and not across:
        fixed = {"layers": 1, **fixed}
    shown = _those_of(kind, law.shown)
    return Examples(kind, tuple(law.least.items()), tuple(fixed.items()), tuple(shown.items()))


def check_fixed(sizes: Mapping[str, int], subject: Subject, laws: Iterable[Law]) -> None:
    """Raise `PolicyError` unless there are examples of these sizes for the laws about a component."""
    kinds = {law.example_type(subject): None for law in laws if not law.silent_about(subject)}
    known = sorted({each.name for kind in kinds for each in fields(kind)})
    for name in sizes:
        if name not in known:
            raise PolicyError(
                f"sizes: {name!r} is no size of an example for {subject.component!r}.{closest(name, known)}"
            )
    for kind in kinds:
        made: Any = kind
        made(**_those_of(kind, sizes))  # it says itself what it can be


def too_small(law: Law, sizes: Mapping[str, int]) -> str | None:
    """Why examples of these sizes can say nothing about a law, or None."""
    for name, least in law.least.items():
        if sizes.get(name, least) < least:
            return f"needs {least} {name}, and {name}={sizes[name]}"
    return None


def _those_of(kind: type[Any], sizes: Mapping[str, int]) -> Mapping[str, int]:
    names = {each.name for each in fields(kind)}
    return {name: size for name, size in sizes.items() if name in names}
