"""The kit is itself tested: every mutant is killed by the law that must, and told once; nothing right is reported.

``HYPOTHESIS_PROFILE=nightly`` tries every law as a user's run does; else a few rich examples stand for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mutants import MUTANTS, TWINS, Mutant
from pool import examples

from kvpolicy import KVPolicyError
from kvpolicy.testing import Check, ConformanceError, Law, checks, checks_of
from kvpolicy.testing._order import OrderedCheck, in_order

CASES = [pytest.param(m, backend, id=f"{m.name}-{backend}") for m in MUTANTS for backend in m.backends]
RIGHT = [
    pytest.param(twin, backend, id=f"{n}-{type(twin).__name__}-{backend}")
    for n, twin in enumerate(TWINS)
    for backend in (("torch",) if hasattr(twin, "store") else ("numpy", "torch"))
]
CHANCE = ("deterministic", "thread_safe")  # what breaks these may not do so every time
TRIES = 30
NOWHERE = ("well_formed", "immutable", *CHANCE)  # about a component, not about rows
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


@cache
def death(mutant: Mutant, backend: str) -> ConformanceError | None:
    """The failure of the law that must kill it, of the smallest example."""
    with mutant.at_work() as component:
        check = checks_of(component, backend=backend, profile="ci", sizes=mutant.sizes)[mutant.law]
        assert isinstance(check, Check)
        for _ in range(TRIES if mutant.law in CHANCE else 1):
            try:
                check(component)
            except ConformanceError as error:
                return error.with_traceback(None)
    return None


def shown_by(script: str) -> tuple[ConformanceError | None, Mapping[str, Any]]:
    """The failure that a reproducer shows, and its names."""
    names: dict[str, Any] = {}
    try:
        exec(compile(script, "reproducer", "exec"), names)
    except ConformanceError as error:
        return error, names
    return None, names


@dataclass(frozen=True, eq=False)
class Quick:
    """A check on a few rich examples, and perhaps one more that is known to tell."""

    check: Check
    most: int
    known: Any

    @property
    def law(self) -> Law:
        return self.check.law

    @property
    def expected(self) -> None:
        return None

    def __call__(self, component: Any) -> None:
        subject = self.check._subject
        known = [] if self.known is None else [self.known]
        for example in (*known, *examples(self.law, self.law.example_type(subject), most=self.most)):
            self.law.hold(subject, component, example, self.check.backend)


def ordered(
    component: Any, backend: str, most: int, sizes: Mapping[str, Any] | None = None, **known: Any
) -> Mapping[str, OrderedCheck | str]:
    """All checks in order, on so many examples, and each on one that is known for its law."""
    about: Mapping[str, Any] = checks_of(component, backend=backend, profile="ci", sizes=sizes if THOROUGH else None)
    if not THOROUGH:
        about = {n: c if isinstance(c, str) else Quick(c, most, known.get(n)) for n, c in about.items()}
    return in_order(about)


def failures(component: Any, about: Mapping[str, OrderedCheck | str]) -> Mapping[str, ConformanceError]:
    """What a user sees: failures that no earlier one explains."""
    seen = {name: check.settle(component) for name, check in about.items() if not isinstance(check, str)}
    return {name: found for name, (found, earlier) in seen.items() if found is not None and earlier is None}


@pytest.mark.parametrize(("mutant", "backend"), CASES)
class TestEveryMutant:
    def test_is_killed_by_the_law_that_must(self, mutant: Mutant, backend: str) -> None:
        error = death(mutant, backend)
        assert error is not None, f"{mutant.name} survives {mutant.law}"
        assert error.law == mutant.law
        assert error.detail
        assert str(error).count(error.script.splitlines()[0]) == 1
        if error.__cause__ is not None and mutant.law not in CHANCE:
            assert isinstance(error.__cause__, KVPolicyError), "the mutant is wrong in another way"
        elif mutant.law not in NOWHERE:
            assert max(error.place) >= 0, error.detail

    def test_can_be_seen_again(self, mutant: Mutant, backend: str) -> None:
        error = death(mutant, backend)
        assert error is not None
        with mutant.at_work():
            for _ in range(TRIES if mutant.law in CHANCE else 1):
                again, names = shown_by(error.script)
                if again is not None:
                    break
        assert again is not None, error.script
        assert again.law == error.law
        assert repr(names["component"]) == repr(error.component)
        if mutant.law not in CHANCE:
            assert (again.place, again.detail) == (error.place, error.detail)

    def test_is_told_once(self, mutant: Mutant, backend: str) -> None:
        error = death(mutant, backend)
        assert error is not None
        with mutant.at_work():
            _, names = shown_by(error.script)
        with mutant.at_work() as component:
            seen = failures(component, ordered(component, backend, 1, mutant.sizes, **{mutant.law: names["example"]}))
        assert seen
        assert set(seen) <= {mutant.law, *mutant.also}


@pytest.mark.parametrize(("twin", "backend"), RIGHT)
def test_what_is_right_is_not_reported(twin: Any, backend: str) -> None:
    about = ordered(twin, backend, 5)
    assert any(not isinstance(check, str) for check in about.values())
    assert failures(twin, about) == {}


def test_every_law_kills() -> None:
    assert {m.law for m in MUTANTS} == set(checks.LAWS)


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 40
    faults = [type(component).__doc__ for m in MUTANTS for component in [m.make()] if not m.name.startswith("policy")]
    assert all(faults)


@pytest.mark.parametrize("name", ["mask-of-one-head", "every-second-call"])
def test_a_reproducer_is_a_program(name: str, tmp_path: Path) -> None:
    (mutant,) = (m for m in MUTANTS if m.name == name)
    error = death(mutant, "numpy")
    assert error is not None
    (tmp_path / "again.py").write_text(error.script, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(tmp_path / "again.py")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"ConformanceError: {str(error).splitlines()[0]}" in run.stderr
    assert error.detail in run.stderr
