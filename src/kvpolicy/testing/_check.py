"""A check: a law, tried on as many examples as the profile says, the smallest failure shown."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from .._check import closest
from .._errors import PolicyError
from ._examples import check_fixed, drawn, examples_of, too_small
from ._law import ConformanceError, Law
from ._memo import Memo
from ._outcome import BrokenLawError
from ._subject import Subject, subject_of
from ._vacuous import drops_a_row, tells, vacuous
from .checks import LAWS
from .tables import Table

__all__ = ["PROFILES", "Check", "checks_of", "default_profile"]

# Examples that a law is tried on, at most.
PROFILES: Mapping[str, int] = {"quick": 15, "dev": 25, "ci": 50, "nightly": 1000}
_SAME = ("quick", "ci")  # those that try the same examples every time

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
        backend: where, such as ``"torch"``.
        profile: how many examples at most, a key of `PROFILES`.
        sizes: what examples must have for this component, such as ``{"heads": 2}``.
        expected: why it is expected to fail; then more examples are tried, so that it does not pass by chance.
    """

    law: Law
    component: Any
    _subject: Subject  # the component, with what earlier laws saw of it
    backend: str
    profile: str
    sizes: Mapping[str, int]
    expected: str | None = None
    _dropping: list[bool] = field(default_factory=list, init=False)  # of each example, until one makes it drop a row

    @property
    def examples(self) -> int:
        """How many it tries at most: a share of the profile's, or many more where it is expected to fail."""
        share = self.law.effort * (1.0 if self.law.example_type(self._subject) is Table else _REQUESTS)
        return max(1, round(PROFILES[self.profile] * share)) * (20 if self.expected else 1)

    @property
    def vacuous(self) -> bool:
        """Whether it was tried, could tell if the component drops rows, and saw it drop none."""
        return bool(self._dropping) and not any(self._dropping)

    def __repr__(self) -> str:
        return f"{self.law.name}-{self.backend}"

    def __call__(self, component: Any) -> None:
        """Try the law on the component that the check is about.

        Raises:
            ConformanceError: of the smallest example that was found.
            PolicyError: if it is another component.

        Warns:
            VacuousPassWarning: if no example makes a policy, selector or merger drop a row.
        """
        if component is not self.component:
            raise PolicyError(f"this check is about {self.component!r}; it was called with {component!r}.")
        found: list[ConformanceError] = []
        watched = tells(self.law, self._subject)

        def attempt(example: Any) -> None:
            try:
                self.law.hold(self._subject, component, example, self.backend)
            except ConformanceError as error:
                found.append(error)
                raise
            if watched and not any(self._dropping):
                self._dropping.append(drops_a_row(self._subject, example))

        def holds(example: Any) -> bool:
            try:
                attempt(example)
            except ConformanceError:
                return False
            return True

        examples = examples_of(self.law, self._subject, self.sizes)
        start = 0 if self.profile in _SAME else _SEED
        try:
            # Other laws were given the same, so most often they need not be drawn; many more, of which one fails, do.
            if self.expected is not None or not all(map(holds, drawn(examples, self.examples, start))):
                examples.each(attempt, most=self.examples, start=start)
        except ConformanceError:
            raise found[-1] from found[-1].__cause__
        except Exception as error:
            if not found:
                raise
            raise self._sometimes(found[-1]) from error
        if found:
            raise self._sometimes(found[-1])
        if self.vacuous:
            warnings.warn(vacuous(component), stacklevel=2)

    def _sometimes(self, last: ConformanceError) -> ConformanceError:
        """The failure of an example that did not fail again."""
        detail = f"sometimes: {last.detail} The same example does not always do so, so it is not deterministic."
        at = str(BrokenLawError(last.place, detail))
        return ConformanceError(self.law, self.component, last.place, detail, at, last.script)


def checks_of(
    component: Any,
    *,
    backend: str = "torch",
    profile: str | None = None,
    sizes: Mapping[str, int] | None = None,
    expected: Mapping[str, str] | None = None,
) -> Mapping[str, Check | str]:
    """Every law by name: a check of this component, or why the law says nothing about it.

    Args:
        component: a policy, a pipeline, a stage or a backend.
        backend: ``"numpy"``, ``"torch"`` or ``"torch:cuda"``.
        profile: how many examples at most, a key of `PROFILES`; None: ``"ci"`` where the environment
            variable CI is set, else ``"dev"``.
        sizes: what examples must look like for it, such as ``{"layers": 2, "heads": 4}``.
        expected: laws that it breaks on purpose, and why.

    Raises:
        PolicyError: if ``expected`` names a law that there is not, or that says nothing about the component; if
            ``sizes`` are not those of an example, or out of range.
        BackendUnavailableError: if there is no such backend, or it is not installed.
    """
    subject = replace(subject_of(component, backend), memo=Memo())
    given_sizes, reasons = dict(sizes or {}), dict(expected or {})
    profile = profile or default_profile()
    if profile not in PROFILES:
        raise PolicyError(f"profile={profile!r}: there are {', '.join(PROFILES)}.")
    check_fixed(given_sizes, subject, LAWS.values())
    out: dict[str, Check | str] = {}
    for name, law in LAWS.items():
        silent = law.silent_about(subject) or too_small(law, given_sizes)
        if silent is not None:
            out[name] = silent
            continue
        out[name] = Check(law, component, subject, backend, profile, given_sizes, reasons.pop(name, None))
    for name in reasons:
        if name not in LAWS:
            raise PolicyError(f"expected failure of {name!r}: there is no such law.{closest(name, LAWS)}")
        raise PolicyError(f"expected failure of {name!r}: it does not apply to {component!r} ({out[name]}).")
    return out
