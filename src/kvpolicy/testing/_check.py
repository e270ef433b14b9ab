"""A check: a law, tried on as many examples as the profile says, the smallest failure shown."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, final

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from .._check import closest
from .._errors import PolicyError
from . import strategies
from ._law import ConformanceError, Law
from ._memo import Memo
from ._outcome import Place
from ._subject import Subject, subject_of
from .checks import LAWS
from .machine import traces
from .requests import Request
from .tables import Table
from .traces import Trace

__all__ = ["PROFILES", "Check", "checks_of", "default_profile", "examples_of"]

# Examples for each law.
PROFILES: Mapping[str, int] = {"dev": 25, "ci": 50, "nightly": 1000}

_REQUESTS = 0.5  # of the examples, where each is a whole request of several passes

# One seed a process: laws that draw alike then see the same examples, and share what a component made of them.
_SEED = secrets.randbits(32)


def default_profile() -> str:
    """``ci`` where the environment variable CI is set, else ``dev``."""
    return "ci" if os.environ.get("CI") else "dev"


@final
@dataclass(frozen=True, eq=False)
class Check:
    """A law about one component on one backend; call it with the component.

    Attributes:
        law: what is tried.
        component: on what.
        subject: the same, with what earlier laws saw of it.
        backend: where, such as ``"torch"``.
        profile: how many examples, a key of `PROFILES`.
        sizes: what examples must have for this component, such as ``{"heads": 2}``.
        expected: why it is expected to fail; then more examples are tried, so that it does not pass by chance.
    """

    law: Law
    component: Any
    subject: Subject
    backend: str
    profile: str
    sizes: Mapping[str, int]
    expected: str | None = None

    def __repr__(self) -> str:
        return f"{self.law.name}-{self.backend}"

    def __call__(self, component: Any) -> None:
        """Try the law on the component that the check is about.

        Raises:
            ConformanceError: of the smallest example that was found.
            PolicyError: if it is another component.
        """
        if component is not self.component:
            raise PolicyError(f"this check is about {self.component!r}; it was called with {component!r}.")
        found: list[ConformanceError] = []
        share = self.law.effort * (1.0 if self.law.example_type(self.subject) is Table else _REQUESTS)
        examples = max(1, round(PROFILES[self.profile] * share)) * (20 if self.expected else 1)

        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @seed(0 if self.profile == "ci" else _SEED)
        @given(examples_of(self.law, self.subject, self.sizes))
        def attempt(example: Any) -> None:
            try:
                self.law.hold(self.subject, component, example, self.backend)
            except ConformanceError as error:
                found.append(error)
                raise

        try:
            attempt()
        except ConformanceError:
            raise found[-1] from found[-1].__cause__
        except Exception as error:
            if not found:
                raise
            # It failed, and did not fail again for the same example.
            last, place = found[-1], Place()
            detail = f"sometimes: {last.detail} The same example does not always do so, so it is not deterministic."
            raise ConformanceError(self.law, component, place, detail, detail, last.script) from error


def examples_of(law: Law, subject: Subject, sizes: Mapping[str, int]) -> st.SearchStrategy[Any]:
    """What a law is tried on for this component."""
    sizes = {name: size for name, size in sizes.items() if name in _sizes(law, subject)}
    if law.example_type(subject) is Trace:
        return traces(**sizes)
    if law.example_type(subject) is Request:
        return strategies.requests(least=law.least, **sizes)
    # Layer by layer but for these, which compare layers: one is enough.
    layers = {} if subject.kind.name in ("ImportanceScorer", "Allocator") else {"layers": 1}
    return strategies.tables(least=law.least, **{**layers, **sizes})


def checks_of(
    component: Any,
    *,
    backend: str = "torch",
    profile: str | None = None,
    sizes: Mapping[str, int] | None = None,
    expected: Mapping[str, str] | None = None,
) -> Mapping[str, Check | str]:
    """Every law by name: a check of this component, or why the law says nothing about it.

    Raises:
        PolicyError: if ``expected`` names a law that there is not, or that says nothing about the component.
    """
    subject = replace(subject_of(component, backend), memo=Memo())
    given_sizes, reasons = dict(sizes or {}), dict(expected or {})
    profile = profile or default_profile()
    if profile not in PROFILES:
        raise PolicyError(f"profile={profile!r}: there are {', '.join(PROFILES)}.")
    out: dict[str, Check | str] = {}
    for name, law in LAWS.items():
        silent = law.silent_about(subject) or _too_small(law, given_sizes)
        if silent is not None:
            out[name] = silent
            continue
        out[name] = Check(law, component, subject, backend, profile, given_sizes, reasons.pop(name, None))
    known = sorted({name for law in LAWS.values() if not law.silent_about(subject) for name in _sizes(law, subject)})
    for name in given_sizes:
        if name not in known:
            raise PolicyError(f"sizes: {name!r} is no size of an example for {component!r}.{closest(name, known)}")
    for name in reasons:
        if name not in LAWS:
            raise PolicyError(f"expected failure of {name!r}: there is no such law.{closest(name, LAWS)}")
        raise PolicyError(f"expected failure of {name!r}: it does not apply to {component!r} ({out[name]}).")
    return out


def _sizes(law: Law, subject: Subject) -> set[str]:
    """What can be fixed of the examples of a law."""
    return {each.name for each in fields(law.example_type(subject))}


def _too_small(law: Law, sizes: Mapping[str, int]) -> str | None:
    for name, least in law.least.items():
        if sizes.get(name, least) < least:
            return f"needs {least} {name}, and {name}={sizes[name]}"
    return None
