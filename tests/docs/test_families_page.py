"""The page of families says what `tests/families` expects of each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
from pages import ROOT


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """`scripts.families`, as `python -m` finds it in the root of the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("scripts.families")


def test_the_tables_are_what_is_expected(script: ModuleType) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.rendered(page) == page, f"out of date: python -m scripts.families; it gives\n\n{script.tables()}"


def test_a_page_without_a_place_for_them(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="no place for the families"):
        script.rendered("# Model families\n")
