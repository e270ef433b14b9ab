"""The pages of policies say what the recipes are, and are what their script makes of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from pages import ROOT, blocks, script

from kvpolicy import RECIPES
from kvpolicy.cli._recipes import find

pytest.importorskip("polars")
FOLDER = ROOT / "docs" / "policies"
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def pages() -> Iterator[ModuleType]:
    with script("policy_pages") as module:
        yield module


@pytest.fixture(scope="module")
def measured(pages: ModuleType) -> Mapping[str, Any]:
    return pages.measured()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_page_and_its_plots_are_the_script_s(recipe: str, pages: ModuleType, measured: Mapping[str, Any]) -> None:
    text = (FOLDER / f"{recipe}.md").read_text(encoding="utf-8")
    assert pages.page(find(recipe), measured) == text, "out of date: python -m scripts.policy_pages"
    for file, drawn in pages.pictures(recipe, measured):
        assert file.read_text(encoding="utf-8") == drawn, "out of date: python -m scripts.policy_pages"
        assert f"(../assets/policies/{file.name})" in text


def test_no_plot_is_left_over(pages: ModuleType, measured: Mapping[str, Any]) -> None:
    drawn = {file for recipe in RECIPES for file, _ in pages.pictures(recipe, measured)}
    assert drawn == set(pages.PICTURES.iterdir())


def test_the_index_is_the_script_s_and_has_every_recipe_once(pages: ModuleType) -> None:
    text = pages.INDEX.read_text(encoding="utf-8")
    assert pages.indexed(text) == text, "out of date: python -m scripts.policy_pages"
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(\1\.md\)", text, re.M)) == sorted(RECIPES)


def test_the_navigation_has_the_groups_of_the_index(pages: ModuleType) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown: dict[str, list[str]] = {}
    group = ""
    for line in text.splitlines():
        if heading := re.match(r" {6}- ([\w ]+):$", line):
            group = heading[1]
        if entry := re.match(r" {10}- policies/(\w+)\.md$", line):
            shown.setdefault(group, []).append(entry[1])
    assert shown == {group: list(names) for group, names in pages.GROUPS.items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_page_runs_its_composition(recipe: str) -> None:
    (block,) = blocks(FOLDER / f"{recipe}.md")
    assert re.search(rf"^assert policy == {recipe}\(", block.code, re.M)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_docstring_says_when_to_use_it(recipe: str) -> None:
    described = find(recipe)
    assert described.good_for.endswith(".")
    assert described.not_for.endswith(".")


def test_the_page_of_generation_refuses_guesses_for_the_same_recipes(pages: ModuleType) -> None:
    row = re.search(r"prompt_lookup_num_tokens=3 under ([\w, ]+)`", (ROOT / "docs/generation.md").read_text("utf-8"))
    assert row is not None
    refused = {name for name in RECIPES if pages.facts(find(name))["assisted decoding"] != "exact"}
    assert refused == set(row[1].split(", "))


def test_facts_tell_recipes_apart(pages: ModuleType) -> None:
    def told(label: str, recipe: str) -> str:
        return pages.facts(find(recipe))[label]

    assert told("how many", "ada_kv") == told("how many", "head_kv") != told("how many", "snapkv")
    assert told("how many", "pyramid_kv") == told("how many", "d2o") == "layers differ"
    assert told("which rows stay", "elastic_cache") == told("which rows stay", "tova") != told("which rows stay", "h2o")
    assert "inputs=" in told("needs", "look_m")
    assert "inputs=" not in told("needs", "h2o")
    assert told("needs", "expected_attention") == "plain rotary positions"
    assert told("compiled decoding", "h2o") == "yes" != told("compiled decoding", "cam")


def test_the_readme_lists_every_recipe_with_its_source() -> None:
    lines = re.search(r"^\| recipe \|.*\n\|[-|]+\n((?:\|.*\n)+)", README.read_text(encoding="utf-8"), re.M)
    assert lines is not None
    rows = {row.split("`")[1]: row for row in lines[1].splitlines()}
    assert list(rows) == list(RECIPES)
    for recipe, row in rows.items():
        source = re.findall(r"\d{4}\.\d{5}", inspect.getdoc(RECIPES[recipe]) or "")
        assert set(re.findall(r"\d{4}\.\d{5}", row)) == set(source[:1])
