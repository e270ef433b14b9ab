"""For the terminal: docstring text with its code marked."""

from __future__ import annotations

from rich.text import Text


def marked(text: str) -> Text:
    """A docstring's text with what stands between double backticks as code."""
    parts = text.split("``")
    return Text.assemble(*((part, "cyan" if number % 2 else "") for number, part in enumerate(parts)))
