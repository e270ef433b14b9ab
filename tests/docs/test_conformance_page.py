"""The kit's page lists the laws that there are, and its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import pytest
import typer
from pages import ROOT, script

from kvpolicy.testing import PROFILES
from kvpolicy.testing.command import check

TEXT = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def laws() -> Iterator[ModuleType]:
    with script("laws") as module:
        yield module


def test_the_laws_are_those_of_the_kit(laws: ModuleType) -> None:
    assert laws.rendered(TEXT) == TEXT, f"out of date: python -m scripts.laws; it gives\n\n{laws.table()}"


def test_every_option_of_the_command_is_there() -> None:
    program = typer.Typer(add_completion=False)
    program.command()(check)
    options = [name for option in typer.main.get_command(program).params for name in option.opts]
    assert {name for name in options if name.startswith("--")} <= {*re.findall(r"`(--[a-z-]+)", TEXT)}


def test_every_option_of_pytest_is_there() -> None:
    plugin = (ROOT / "src" / "_kvpolicy_pytest.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"(--kvpolicy-[a-z]+)"', plugin)) <= {*re.findall(r"`(--[a-z-]+)", TEXT)}


def test_profiles() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", TEXT, re.M))
    assert {name: int(number.replace(",", "")) for name, number in shown.items()} == dict(PROFILES)
