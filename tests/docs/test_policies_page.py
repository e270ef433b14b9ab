"""The policies page says what the recipes are."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from pages import ROOT, blocks

from kvpolicy import RECIPES, Policy
from kvpolicy.cli._recipes import find

PAGE = ROOT / "docs" / "policies.md"
README = ROOT / "README.md"


def example(recipe: str) -> Policy:
    """The recipe as the page shows it, and as `kvpolicy explain` does."""
    return find(recipe).example()


def table(text: str) -> dict[str, str]:
    """The rows of the first table whose first cell is code, by that code."""
    lines = re.search(r"^\| recipe \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    assert lines is not None
    return {row.split("`")[1]: row for row in lines[1].splitlines()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_composition_is_the_repr(recipe: str) -> None:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n### {recipe}\n")[2]
    shown = re.match(r"\n```python\n(.*?)```", section, re.S)
    assert shown is not None, f"no composition under '### {recipe}'"
    assert _plain(shown[1]) == _plain(repr(example(recipe)))


@pytest.mark.parametrize("page", [PAGE, README], ids=lambda page: page.name)
def test_table_lists_every_recipe_with_its_source(page) -> None:
    rows = table(page.read_text(encoding="utf-8"))
    assert list(rows) == list(RECIPES)
    for recipe, row in rows.items():
        source = re.findall(r"\d{4}\.\d{5}", inspect.getdoc(RECIPES[recipe]) or "")
        assert set(re.findall(r"\d{4}\.\d{5}", row)) == set(source[:1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_sections_are_those_of_the_docstring(recipe: str) -> None:
    row = table(PAGE.read_text(encoding="utf-8"))[recipe]
    doc = " ".join((inspect.getdoc(RECIPES[recipe]) or "").split())
    sections = re.search(r"sections? [\d.]+(?: and [\d.]+\d)?", row)
    assert sections is None or sections[0] in doc


def test_every_composition_is_run() -> None:
    assert len(blocks(PAGE)) >= len(RECIPES)


def _plain(expression: str) -> str:
    return ast.unparse(ast.parse(expression, mode="eval"))
