"""The drawings of the concepts page are what their script draws, and say what the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import pytest
from pages import ROOT, script

TEXT = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawings() -> Iterator[ModuleType]:
    with script("concept_drawings") as module:
        yield module


def test_the_drawings_are_the_script_s(drawings: ModuleType) -> None:
    for name, draw in drawings.DRAWINGS.items():
        assert (drawings.PICTURES / f"{name}.svg").read_text("utf-8") == draw(), "python -m scripts.concept_drawings"
        assert f"(assets/{name}.svg)" in TEXT


def test_the_count_gives_a_merged_row_what_its_rows_had(drawings: ModuleType) -> None:
    alone, *alike, merged_alone, merged, counted_alone, counted = map(int, re.findall(r">(\d+)%<", drawings.merging()))
    assert len(alike) == 3
    assert merged < sum(alike)
    assert counted_alone == alone != merged_alone
    assert counted == pytest.approx(sum(alike), abs=2)  # each is rounded
