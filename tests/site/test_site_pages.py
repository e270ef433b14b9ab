"""Reading the documentation in a browser. The fixture `page` holds every test to no error and no outside request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

PHONE = {"width": 390, "height": 844}


def test_every_page_opens_and_fits_a_phone(page: Page, served: str, site: Path) -> None:
    page.set_viewport_size(PHONE)
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8")) | {"docs": []}
    page.route("**/search_index.json", lambda route: route.fulfill(json=index))  # else each page indexes the whole site
    odd = {}
    for file in sorted(site.rglob("*.html")):
        name = file.relative_to(site).as_posix()
        if name == "404.html":
            continue
        page.goto(f"{served}/{name}")
        found = page.evaluate("[document.querySelectorAll('h1').length, document.documentElement.scrollWidth]")
        if found != [1, PHONE["width"]]:
            odd[name] = found
    assert not odd, "pages with another number of titles than one, or wider than a phone"


def test_the_drawer_opens_on_a_phone(page: Page, served: str) -> None:
    page.set_viewport_size(PHONE)
    page.goto(f"{served}/quickstart.html")
    drawer = page.get_by_role("navigation", name="Navigation")
    expect(drawer.get_by_role("link", name="Explore")).not_to_be_in_viewport()
    page.locator("header label[for=__drawer]").click()
    drawer.get_by_role("link", name="Explore").click()
    page.wait_for_url("**/explore.html")


def test_search_finds_a_policy(page: Page, base: str) -> None:
    page.goto(f"{base}/index.html")
    page.get_by_role("textbox", name="Search").press_sequentially("Elastic Cache")  # by keys, to which it listens
    result = page.locator(".md-search-result__link").first
    expect(result).to_contain_text("Elastic")
    result.click()
    page.wait_for_url(lambda url: not url.startswith(f"{base}/index.html"))
    expect(page.locator("article mark").first).to_be_attached()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_palette_is_switched_and_remembered(page: Page, served: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{served}/index.html")
    before = page.locator("body").get_attribute("data-md-color-scheme")
    assert before == {"light": "default", "dark": "slate"}[scheme]
    background = "getComputedStyle(document.body).backgroundColor"
    colour = page.evaluate(background)
    page.locator("form[data-md-component=palette] label:visible").click()
    expect(page.locator("body")).not_to_have_attribute("data-md-color-scheme", before)
    switched = page.evaluate(background)
    assert switched != colour
    page.reload()
    expect(page.locator("body")).not_to_have_attribute("data-md-color-scheme", before)
    assert page.evaluate(background) == switched


def test_code_is_copied(page: Page, served: str) -> None:
    page.goto(f"{served}/index.html")
    block = page.locator(".highlight", has_text="PolicyCache").first
    block.hover()
    block.locator("[data-md-type=copy], .md-clipboard").click()
    expect(page.locator(".md-dialog")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").strip() == block.locator("code").inner_text().strip()
