"""CITATION.cff cites this version, and every paper as the recipes do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from pages import ROOT

import kvpolicy
from kvpolicy.cli._recipes import recipes

CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PAPERS = {recipe.name: recipe.source for recipe in recipes() if recipe.source != "none."}
REFERENCES = dict(zip(PAPERS, CITATION["references"], strict=True))  # one a recipe, in the same order


def test_it_has_what_the_format_asks_for() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type"} <= set(CITATION)
    assert CITATION["license"] == "Apache-2.0"


def test_it_cites_this_version() -> None:
    assert CITATION["version"] == kvpolicy.__version__
    entry = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert entry is not None
    assert (CITATION["version"], str(CITATION["date-released"])) == entry.groups()


@pytest.mark.parametrize("recipe", PAPERS)
def test_a_paper_is_cited_as_its_recipe_does(recipe: str) -> None:
    source, reference = PAPERS[recipe], REFERENCES[recipe]
    first = re.match(r"(\w+) et al\.", source)
    assert first is not None
    assert reference["authors"][0]["family-names"] == first[1]
    assert len(reference["authors"]) > 1
    assert f'"{reference["title"]}",' in source
    arxiv = re.findall(r"arXiv (\d{4}\.\d{5})", source)
    assert [one["value"] for one in reference.get("identifiers", [])] == [f"arXiv:{number}" for number in arxiv]
    assert reference.get("url", "") == "".join(f"https://arxiv.org/abs/{number}" for number in arxiv)


@pytest.mark.parametrize("recipe", PAPERS)
def test_year_and_venue_are_those_of_the_recipe(recipe: str) -> None:
    source, reference = PAPERS[recipe], REFERENCES[recipe]
    if reference["type"] == "conference-paper":
        assert f"{reference['conference']['name']}," in source
        assert reference["conference"]["name"].split()[1] == str(reference["year"])
    else:
        assert reference["url"].rpartition("/")[2].startswith(f"{reference['year'] % 100}")
