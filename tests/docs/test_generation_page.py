"""The page of generation modes says what the tests expect, and names tests that there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from pages import ROOT, script

TEXT = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def modes() -> Iterator[ModuleType]:
    with script("modes") as module:
        yield module


@pytest.fixture(scope="module")
def expected(modes: ModuleType) -> Any:
    return modes.expected()


def test_the_tables_are_what_the_tests_expect(modes: ModuleType) -> None:
    assert modes.rendered(TEXT) == TEXT, f"out of date: python -m scripts.modes; it gives\n\n{modes.rendered(TEXT)}"


def test_every_test_that_is_named_is_there(expected: Any) -> None:
    named = [f"tests/modes/{mode.test}" for mode in expected.MODES]
    named += [test for _, tests in expected.FAULTS.values() for test in tests]
    for test in named:
        file, _, function = test.partition("::")
        found = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))) if hasattr(node, "name")}
        assert not function or function in found, test


def test_no_two_modes_have_one_name(expected: Any) -> None:
    names = [mode.name for mode in expected.MODES]
    assert len(set(names)) == len(names)
