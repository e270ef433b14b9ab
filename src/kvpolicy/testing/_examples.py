"""What a law is tried on for a component, and what of it can be fixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from .._check import closest
from .._errors import PolicyError
from . import strategies
from ._law import Law
from ._subject import Subject
from .machine import traces
from .requests import Request
from .traces import Trace

__all__ = ["check_fixed", "examples_of", "too_small"]


def examples_of(law: Law, subject: Subject, sizes: Mapping[str, int]) -> st.SearchStrategy[Any]:
    """The examples, of these sizes as far as they have them."""
    kind = law.example_type(subject)
    sizes = _those_of(kind, sizes)
    if kind is Trace:
        return traces(**sizes)
    if kind is Request:
        return strategies.requests(least=law.least, **sizes)
    # Layer by layer, so that one is enough, but for components and laws that compare layers.
    across = subject.kind.name in ("ImportanceScorer", "Allocator") or "layers" in law.least
    layers = {} if across else {"layers": 1}
    return strategies.tables(least=law.least, **{**layers, **sizes})


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
