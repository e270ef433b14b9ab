"""The fidelity page says what the recipes are today, and what was measured last."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import re
import runpy
from collections.abc import Iterator
from types import ModuleType

import pytest
from pages import ROOT

from kvpolicy import RECIPES
from kvpolicy.cli._recipes import find

PAGE = ROOT / "docs" / "fidelity.md"
TEXT = PAGE.read_text(encoding="utf-8")
NUMBERS = json.loads((ROOT / "docs" / "results" / "fidelity.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """`scripts.fidelity`, as `python -m` finds it in the root of the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        for part in ("methods", "page", "prompts"):
            importlib.import_module(f"scripts.fidelity.{part}")
        yield importlib.import_module("scripts.fidelity")


def section(recipe: str) -> str:
    """What stands under a recipe's heading."""
    return re.split(r"^### ", TEXT.partition(f"\n### {recipe}\n")[2], maxsplit=1, flags=re.M)[0]


def test_every_recipe_has_a_section_in_order() -> None:
    assert re.findall(r"^### (\w+)$", TEXT, re.M) == list(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_composition_is_the_repr(recipe: str) -> None:
    shown = re.search(r"^```python\n(.*?)^```$", section(recipe), re.S | re.M)
    assert shown is not None, f"no composition under '### {recipe}'"
    assert _plain(shown[1]) == _plain(repr(find(recipe).example()))


@pytest.mark.parametrize("recipe", RECIPES)
def test_formula_is_the_docstring(recipe: str) -> None:
    doc = " ".join((inspect.getdoc(RECIPES[recipe]) or "").split())
    formula = re.search(r"^\*\*Formula:\*\* (.+)$", section(recipe), re.M)
    assert formula is not None
    assert f"Formula: {formula[1]}" in doc


@pytest.mark.parametrize("recipe", RECIPES)
def test_reference_exists_and_is_of_the_recipe(recipe: str) -> None:
    named = re.findall(r"^\*\*Reference\.\*\* `([\w/.]+)`$", section(recipe), re.M)
    assert named == [f"tests/parity/test_{recipe}.py"] * (ROOT / "tests" / "parity" / f"test_{recipe}.py").is_file()
    for path in named:
        assert re.search(rf"\b{recipe}\(", (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_section_says_what_differs_what_we_chose_and_what_was_measured(recipe: str) -> None:
    for heading in ("Released code", "What we chose", "Measured"):
        assert re.search(rf"^\*\*{heading}\.\*\* *\S|^\*\*{heading}\.\*\*\n\n\S", section(recipe), re.M), heading


def test_the_page_is_the_script_s(script: ModuleType) -> None:
    assert script.page.render(script.page.stored()) == TEXT, "out of date: python -m scripts.fidelity --render"


def test_another_number_makes_another_page(script: ModuleType) -> None:
    stored = script.page.stored()
    stored["numbers"]["snapkv"]["agree"] += 0.1
    assert script.page.render(stored) != TEXT


def test_every_number_shown_was_measured(script: ModuleType) -> None:
    for recipe, method in script.methods.METHODS.items():
        shown = set(re.findall(r"\{(\w+)[:}]", method.MEASURED))
        assert shown <= NUMBERS["numbers"][recipe].keys(), recipe
        assert bool(shown) == hasattr(method, "measure"), recipe


def test_it_can_be_measured_again(script: ModuleType) -> None:
    records = runpy.run_path(str(script.prompts.SIMULATE))["demo_records"](1)
    samples = script.prompts.Samples((), tuple(map(script.prompts.Prompt, records)))
    for recipe in ("full", "look_m", "vl_cache", "air_cache"):
        numbers = script.methods.METHODS[recipe].measure(samples)
        assert numbers.keys() == NUMBERS["numbers"][recipe].keys()
        assert all(math.isfinite(number) for number in numbers.values())


def test_the_page_says_where_its_numbers_come_from() -> None:
    assert NUMBERS["about"] in TEXT
    assert re.search(r"Python \d.*torch \d.*transformers \d.*; \d{4}-\d\d-\d\d\. Made by `", NUMBERS["about"])


def _plain(expression: str) -> str:
    return ast.unparse(ast.parse(expression, mode="eval"))
