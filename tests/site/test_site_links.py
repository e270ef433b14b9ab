"""Every link, anchor, image, script and style sheet inside the site is there; only links lead outside."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from crawl import references

MISSING = "404.html"  # is served for any address, so it refers from the root


def test_all_references_resolve(site: Path) -> None:
    pages = {file: references(file) for file in site.rglob("*.html") if file.name != MISSING}
    assert len(pages) > 50
    broken = []
    for file, read in pages.items():
        for tag, address in read.found:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if tag != "a" and parts.scheme != "data":
                    broken.append(f"{file.relative_to(site)}: <{tag}> asks another host: {address}")
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchor = unquote(parts.fragment)
            if not target.is_file():
                broken.append(f"{file.relative_to(site)}: no {address}")
            elif anchor and anchor not in pages[target].names:
                broken.append(f"{file.relative_to(site)}: no anchor {address}")
    assert not broken, "\n".join(broken)


def test_every_page_can_be_reached(site: Path) -> None:
    home = (site / "index.html").resolve()
    reached, ahead = {home}, [home]
    while ahead:
        file = ahead.pop()
        for tag, address in references(file).found:
            parts = urlsplit(address)
            target = (file.parent / unquote(parts.path)).resolve()
            if tag == "a" and not parts.netloc and target.suffix == ".html" and target not in reached:
                reached.add(target)
                ahead.append(target)
    assert {file.resolve() for file in site.rglob("*.html") if file.name != MISSING} == reached
