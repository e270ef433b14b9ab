"""What a page of HTML refers to, and what can be referred to in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

REFERENCES = {"a": "href", "link": "href", "img": "src", "script": "src", "image": "href", "source": "src"}


@dataclass
class References:
    """Attributes: names that a fragment may use; and (tag, address) of all that is referred to."""

    names: set[str] = field(default_factory=set)
    found: list[tuple[str, str]] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.read = References()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.read.names |= {value for key in ("id", "name") if (value := given.get(key))}
        if (address := given.get(REFERENCES.get(tag, ""))) is not None:
            self.read.found.append((tag, address))


def references(file: Path) -> References:
    """Of one page."""
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader.read
