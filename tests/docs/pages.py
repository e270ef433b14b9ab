"""The Markdown pages of this repository, and the code in them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"^(?:<!-- skip: (?P<skip>[^\n]+) -->\n+)?```python(?: title=\"(?P<title>[\w.]+)\")?[^\n]*\n(?P<code>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """One ```python block.

    Attributes:
        code: its text.
        line: the line of the page on which the code begins.
        skip: why it is not run; empty if it is.
        title: the file that it is, for later blocks to import from; empty if it is none.
    """

    code: str
    line: int
    skip: str
    title: str = ""


def blocks(page: Path) -> list[Block]:
    """The python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["code"], _line(text, match.start("code")), match["skip"] or "", match["title"] or "")
        for match in _BLOCK.finditer(text)
    ]


def runs_in_the_build(page: Path) -> bool:
    """Whether the page is a tutorial whose code `mkdocs build` runs."""
    return re.search(r"^```\w+ exec=", page.read_text(encoding="utf-8"), re.M) is not None


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def name(page: Path) -> str:
    """For test ids."""
    return str(page.relative_to(ROOT))


@contextmanager
def script(name: str) -> Iterator[ModuleType]:
    """A module of `scripts`, as `python -m` finds it in the root of the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module(f"scripts.{name}")
