"""The architecture page shows the imports that there are."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from types import ModuleType

import pytest
from pages import ROOT, script


@pytest.fixture(scope="module")
def architecture() -> Iterator[ModuleType]:
    with script("architecture") as module:
        yield module


def test_the_drawing_and_the_table_are_the_script_s(architecture: ModuleType) -> None:
    assert architecture.drawn() == architecture.PICTURE.read_text("utf-8"), (
        "out of date: python -m scripts.architecture"
    )
    table = architecture.PAGE.read_text("utf-8").partition("scripts.architecture -->\n\n")[2]
    assert table.startswith(architecture.tabled()), "out of date: python -m scripts.architecture"


def test_every_folder_and_module_has_its_idea(architecture: ModuleType) -> None:
    rows = re.findall(r"^\| `(kvpolicy(?:_hf)?/\w+(?:/|\.py))` \| (.+) \|$", architecture.tabled(), re.M)
    assert len(rows) == architecture.tabled().count("\n") - 2
    assert {"kvpolicy/scorers/", "kvpolicy/_session.py", "kvpolicy_hf/cache.py"} <= {place for place, _ in rows}
    assert all(idea.endswith(".") for _, idea in rows)


def test_a_module_of_no_family_is_noticed(architecture: ModuleType) -> None:
    assert architecture.family_of("kvpolicy.scorers.attention") == "stages"
    assert architecture.family_of("kvpolicy") == "public names"
    with pytest.raises(LookupError, match=r"kvpolicy\._new"):
        architecture.family_of("kvpolicy._new")


def test_arrows_that_follow_are_left_out(architecture: ModuleType) -> None:
    pairs = {("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")}
    assert architecture.needed(pairs) == {("a", "b"), ("b", "c"), ("d", "c")}


def test_a_circle_is_refused(architecture: ModuleType) -> None:
    with pytest.raises(ValueError, match="a, b"):
        architecture.levels({("a", "b"), ("b", "a"), ("b", "c")})


def test_families_stand_in_the_order_that_the_linter_enforces(architecture: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = [one for one in project["tool"]["importlinter"]["contracts"] if one["id"] == "one-way"]
    row = {f"kvpolicy.{name}": n for n, layer in enumerate(contract["layers"]) for name in re.findall(r"\w+", layer)}
    rows = {family.name: [row[name] for name in family.modules if name in row] for family in architecture.FAMILIES}
    assert set(row) <= {name for family in architecture.FAMILIES for name in family.modules}
    for upper, lower in architecture.imports():
        if rows[upper] and rows[lower]:
            assert min(rows[upper]) < max(rows[lower]), f"{upper} imports {lower}"
