"""The explorer, used as a reader does: by its labels and keys. What it shows is what the data say."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

RUNS = Path(__file__).parents[2] / "docs" / "assets" / "explore" / "runs"
PICTURE, QUESTION = "photo-2", 1
KEPT, MERGED = "h2o", "elastic_cache(last=8)"


def data(name: str) -> Any:
    """The JSON within the call."""
    return json.loads((RUNS / f"{name}.js").read_text(encoding="utf-8").split("\n", 1)[1].rsplit("\n", 2)[0])


ABOUT = data("about")
LAYERS, HEADS, GRID = ABOUT["layers"], ABOUT["heads"], ABOUT["grid"]
PATCHES = slice(GRID["first"], GRID["first"] + GRID["rows"] * GRID["columns"])


def own_rows(cell: list[Any]) -> Any:
    """bool [layers, heads, tokens]: which rows stay; one head stands for all that do alike."""
    tokens = ABOUT["pictures"][PICTURE]["questions"][QUESTION]["tokens"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(cell[3]), np.uint8)).astype(bool)
    heads = HEADS if len(bits) >= LAYERS * HEADS * tokens else 1
    return bits[: LAYERS * heads * tokens].reshape(LAYERS, heads, tokens)


@pytest.fixture
def explorer(page: Page, base: str) -> Page:
    page.goto(f"{base}/explore.html")
    page.get_by_role("radio", name=ABOUT["pictures"][PICTURE]["title"]).check(force=True)  # a picture lies on it
    asked = ABOUT["pictures"][PICTURE]["questions"][QUESTION]["text"]
    page.get_by_role("radio", name=asked).check(force=True)
    page.get_by_label("Policy", exact=True).select_option(KEPT)
    return page


def expect_shown(page: Page, policy: str, stop: int) -> None:
    """Answer, rows and patches are those of the data."""
    cell = data(PICTURE)[policy][QUESTION][stop]
    question = ABOUT["pictures"][PICTURE]["questions"][QUESTION]
    rows = own_rows(cell)
    answer = page.locator("#explorer").get_by_role("status")
    keep = f"{ABOUT['keeps'][stop]:.0%}"
    expect(answer).to_contain_text(f"{policy}, keep {keep}")
    verdict = "right: ✓" if cell[0] == question["right"] else "wrong: ✗"
    expect(answer).to_contain_text(f"{verdict} {cell[0]}")
    held = round(float(rows.mean(axis=1).sum() / LAYERS), 1)
    share = f"{cell[1] / cell[2]:.0%}"
    expect(answer).to_contain_text(f"{held:g} of {question['tokens']} rows, {share} of the bytes")
    expect(page.locator("#explorer [data-part=full]")).to_contain_text(f"right: ✓ {question['full']}")
    for layer, panel in enumerate(page.locator("#explorer figure").all()):
        kept = round(float(rows[layer, :, PATCHES].mean(axis=0).sum()), 1)
        expect(panel).to_contain_text(f"layer {layer + 1}{kept:g} of 64 patches")
        whole = int(rows[layer, :, PATCHES].all(axis=0).sum())
        expect(panel.locator(".patch[data-fate=kept]")).to_have_count(whole)
        expect(panel.locator("svg")).to_have_attribute("aria-label", re.compile(f"of 64 patches {whole} kept,"))


def test_a_smaller_budget_keeps_fewer_patches(explorer: Page) -> None:
    slider = explorer.get_by_role("slider", name="Keep")
    slider.focus()
    slider.press("End")
    expect_shown(explorer, KEPT, len(ABOUT["keeps"]) - 1)
    whole = explorer.locator("#explorer .layers").screenshot()
    shown = []
    for stop in reversed(range(len(ABOUT["keeps"]) - 1)):
        slider.press("ArrowLeft")
        expect_shown(explorer, KEPT, stop)
        shown.append(explorer.locator("#explorer .patch[data-fate=kept]").count())
    assert shown == sorted(shown, reverse=True)
    assert shown[-1] < shown[0] < LAYERS * (PATCHES.stop - PATCHES.start)
    assert explorer.locator("#explorer .layers").screenshot() != whole


def test_every_policy_has_the_page_that_the_explorer_links_to(site: Path) -> None:
    assert all((site / "policies" / f"{name.partition('(')[0]}.html").is_file() for name in ABOUT["policies"])


def test_another_policy_keeps_and_answers_otherwise(explorer: Page) -> None:
    stop = ABOUT["keeps"].index(0.2)
    explorer.get_by_role("slider", name="Keep").fill(str(stop))
    expect_shown(explorer, KEPT, stop)
    said, mask = (
        explorer.locator("#explorer").get_by_role("status").inner_text(),
        explorer.locator(".layers").screenshot(),
    )
    assert explorer.locator("#explorer line").count() == 0  # it drops what it does not keep
    explorer.get_by_label("Policy", exact=True).select_option(MERGED)
    expect_shown(explorer, MERGED, stop)
    expect(explorer.get_by_role("link", name=f"More on {MERGED}")).to_have_attribute(
        "href", "policies/elastic_cache.html"
    )
    assert explorer.locator("#explorer line").count() > 0
    assert explorer.locator("#explorer").get_by_role("status").inner_text() != said
    assert explorer.locator(".layers").screenshot() != mask


def test_the_map_leads_to_its_cells_and_a_patch_tells_its_way(explorer: Page) -> None:
    cell = explorer.get_by_role("row", name=re.compile("^tova")).get_by_role("cell").first
    cell.click()
    expect_shown(explorer, "tova", 0)
    expect(cell).to_have_attribute("aria-current", "true")
    explorer.locator("#explorer .patch").first.hover()
    expect(explorer.locator("[data-part=token]")).to_have_text(re.compile(r"^patch 1/1: layer 1 \w+.*layer 4 \w+"))


def test_without_javascript_there_is_a_picture_and_a_table(browser: Browser, served: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{served}/explore.html")
    expect(page.locator("noscript img, img[src='assets/demo.png']")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("^air_cache"))).to_be_visible()
    expect(page.locator("#explorer")).to_be_hidden()
    context.close()
