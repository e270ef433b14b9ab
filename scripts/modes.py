"""The tables in `docs/generation.md`, from what the tests of the generation modes expect.

    python -m scripts.modes    (in the root of the repository; writes the page)

`tests/docs/test_generation_page.py` compares the two.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from scripts.page import DOCS, escaped, with_table

PAGE = DOCS / "generation.md"


def expected() -> Any:
    """`tests/modes/expected.py`."""
    folder = str(DOCS.parent / "tests" / "modes")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("expected")


def modes() -> str:
    """What each way of generating gives."""
    rows = [f"| {mode.name} | {call(mode)} | {holds(mode)} | `{mode.test}` |" for mode in expected().MODES]
    return "\n".join(["| mode | how | what holds | test |", "|---|---|---|---|", *rows, ""])


def faults() -> str:
    """Which tests show that a fault is absent."""
    rows = [
        f"| {number} | {says} | {'<br>'.join(f'`{test}`' for test in tests)} |"
        for number, (says, tests) in expected().FAULTS.items()
    ]
    return "\n".join(["| # | elsewhere | tests by which not here |", "|---|---|---|", *rows, ""])


def call(mode: Any) -> str:
    """How it is asked for."""
    if not mode.call:
        said = ", ".join(f"{name}={value!r}" for name, value in mode.options.items())
        return f"`generate({said})`"
    return str(mode.call) if "`" in mode.call else f"`{mode.call}`"


def holds(mode: Any) -> str:
    """In words."""
    if not mode.refused:
        return str(mode.holds)
    return f"refused{' by transformers' if mode.by == 'transformers' else ''}: {escaped(mode.refused)}"


TABLES = {"modes": modes, "faults": faults}


def rendered(page: str) -> str:
    """The page with the tables in their places."""
    for name, table in TABLES.items():
        page = with_table(page, name, table(), script="modes")
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
