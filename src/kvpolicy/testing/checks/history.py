"""What came before must not matter: earlier requests, other threads, how a prompt was cut."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import numpy as np

from ..._policy import Policy
from ..._protocols import Observer
from .._law import STAGES, law
from .._outcome import BrokenLawError, Outcome, Place, compare, fail
from .._scene import Scene
from .._subject import Example, Subject
from ..requests import Request, Stream
from ..tables import Table

__all__ = ["chunk_invariant", "deterministic", "immutable", "request_isolated", "thread_safe"]

_EVERYTHING = (*STAGES, "Policy", "Backend")
_SEES = (
    "Hint: step.queries are those of the last chunk. A scorer that says window = n is also given earlier ones "
    "(Step.latest); one that says observe() can add up what it sees of each chunk."
)
_CLOSE = 1e-9  # sums on an accelerator may be taken in another order each time; what leaks is larger


def _needs_others(subject: Subject) -> str | None:
    scorer = subject.component
    needs = () if isinstance(scorer, Policy) else getattr(scorer, "needs", ())
    lacks = set(needs) - set(getattr(scorer, "columns", needs if isinstance(scorer, Observer) else ()))
    if not lacks:
        return None
    return f"no policy has it alone: it needs columns that it does not observe ({', '.join(sorted(lacks))})"


@law(
    "ImportanceScorer",
    "Policy",
    after=("slot_equivariant", "thread_safe"),
    on=Request,
    unless=_needs_others,
)
def chunk_invariant(subject: Subject, example: Example) -> None:
    """f(c_1, c_2, ...) = f(c_1 c_2 ...): a prompt fed in chunks gives what it gives whole."""
    asked = subject.as_policy()
    stream = asked.arrays(example)
    assert isinstance(stream, Stream)
    size = 1 + example.seed % stream.prompt
    got, due = asked.run(stream.chunked(size)), asked.run(stream)
    try:
        compare(got, due, what=f"the prompt in one piece, not in chunks of {size}", tolerance=1e-9)
    except BrokenLawError as broken:
        place = broken.place
        if place in got and place in due:
            raise
        chunked, whole = ("kept", "dropped") if place in got else ("dropped", "kept")
        came = f"it was {chunked} when the prompt came in chunks of {size}, and {whole} when it came whole."
        fail(place, f"{came} {_SEES}")


@law(*_EVERYTHING, structural=True)
def deterministic(subject: Subject, example: Example) -> None:
    """f(x) = f(x), bit for bit: chance comes from a seed, never from the clock or a shared generator."""
    arrays = subject.arrays(example)
    one, other = (subject.run(arrays, subject.fresh()) for _ in range(2))
    compare(other, one, what="the first of two equal runs")


@law(*_EVERYTHING, structural=True, effort=0.6)
def request_isolated(subject: Subject, example: Example) -> None:
    """f(y) after f(x) = f(y): nothing that one request leaves behind reaches the next."""
    others = [subject.arrays(other) for other in (_another(example), _longer(example))]
    due = [subject.run(arrays) for arrays in others]  # before, since what a class remembers its copies know too
    used = subject.fresh()
    subject.run(subject.arrays(example), used)
    for arrays, alone in zip(others, due, strict=True):
        compare(subject.run(arrays, used), alone, what="the same request after none", tolerance=_CLOSE)


@law(*_EVERYTHING, effort=0.2)
def thread_safe(subject: Subject, example: Example) -> None:
    """f(x) beside f(y), in as many threads, = f(x): one component serves all requests at once."""
    given = [subject.arrays(each) for each in (example, _another(example), _longer(example))]
    due = [subject.run(arrays) for arrays in given]
    shared, start = subject.fresh(), Barrier(len(given))

    def run(arrays: Scene | Stream) -> Outcome:
        start.wait()
        return subject.run(arrays, shared)

    with _hasty(), ThreadPoolExecutor(len(given)) as pool:
        together = list(pool.map(run, given))
    for got, alone in zip(together, due, strict=True):
        compare(got, alone, what="the same request in a single thread", tolerance=_CLOSE)


@law(*_EVERYTHING, after=("thread_safe",), effort=0.4)
def immutable(subject: Subject, example: Example) -> None:
    """f(x) leaves f as it was: equal, with the same hash and repr, and its copy does as it does."""
    component = subject.fresh()
    before, printed, number = copy.deepcopy(_state(component)), repr(component), _hash(component)
    subject.run(subject.arrays(example), component)
    now = _state(component)
    for name in sorted({*before, *now}):
        if name not in now or name not in before or not _equal(before[name], now[name]):
            fail(Place(), f"its attribute {name!r} was {before.get(name)!r} and is {now.get(name)!r} after a run.")
    if repr(component) != printed and " at 0x" not in printed:
        fail(Place(), f"it printed as {printed} and prints as {component!r} after a run.")
    if _hash(component) != number:
        fail(Place(), "its hash is another one after a run.")


def _another(example: Example) -> Example:
    """A request of the same shape with other numbers."""
    return dataclasses.replace(example, seed=example.seed + 1)


def _longer(example: Example) -> Example:
    """A request of another length, with other numbers."""
    if isinstance(example, Request):
        return dataclasses.replace(example, seed=example.seed + 2, prompt=example.prompt + 1)
    assert isinstance(example, Table)
    now = example.now + (example.now == example.tokens > 1)  # a prompt goes on being one
    return dataclasses.replace(example, seed=example.seed + 2, tokens=example.tokens + 1, now=now)


@contextmanager
def _hasty() -> Iterator[None]:
    """Threads take turns every few bytecodes."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _state(component: Any) -> Mapping[str, Any]:
    """Every attribute of an instance, slots included."""
    state = dict(getattr(component, "__dict__", {}))
    for kind in type(component).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(component, name) and not name.startswith("__"):
                state[name] = getattr(component, name)
    return state


def _equal(one: Any, other: Any) -> bool:
    """Part by part, so that an instance without an equality of its own equals its copy."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if hasattr(one, "__array__") or hasattr(one, "__dlpack__"):
        return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f"))
    if state := _state(one):
        return _equal(state, _state(other))
    return "__eq__" not in _own(one) or bool(one == other)


def _own(value: Any) -> set[str]:
    """What its classes define, beyond every object's."""
    return {name for kind in type(value).__mro__[:-1] for name in vars(kind)}


def _hash(component: Any) -> int | None:
    try:
        return hash(component) if "__hash__" in _own(component) else None
    except TypeError:  # not hashable: only equality counts
        return None
