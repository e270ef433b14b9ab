"""The page of families says what `tests/families` expects of each."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from pages import script


@pytest.fixture(scope="module")
def families() -> Iterator[ModuleType]:
    with script("families") as module:
        yield module


def test_the_tables_are_what_is_expected(families: ModuleType) -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    assert families.rendered(page) == page, f"out of date: python -m scripts.families; it gives\n\n{families.tables()}"


def test_a_page_without_a_place_for_them(families: ModuleType) -> None:
    with pytest.raises(ValueError, match="no place for the families"):
        families.rendered("# Model families\n")
