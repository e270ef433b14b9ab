"""Tables in a page of the documentation, between two comments of which the first names the script that writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["DOCS", "escaped", "table", "with_table"]

DOCS = Path(__file__).parents[1] / "docs"


def escaped(text: str) -> str:
    """As it is, in a cell of a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int | None = None) -> str:
    """A Markdown table of cells that are Markdown themselves.

    Args:
        head: names of the columns.
        rows: cells.
        words: so many columns hold words, and the others numbers, which stand on the right; None: all hold words.
    """
    left = len(head) if words is None else words
    lines = ["| " + " | ".join(head) + " |", "|---" * left + "|---:" * (len(head) - left) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(text: str) -> str:
    """Markdown without a bar that would end the cell; one in code does not."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(part if number % 2 else re.sub(r"(?<!\\)\|", r"\\|", part) for number, part in enumerate(parts))


def with_table(page: str, name: str, table: str, *, script: str) -> str:
    """The page with the table of this name in its place.

    Raises:
        ValueError: if the page has no place for it.
    """
    begin, end = f"<!-- {name}: python -m scripts.{script} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no place for the {name}: {begin.strip()} ... {end.strip()}")
    return f"{before}{begin}\n{table}\n{end}{after}"
