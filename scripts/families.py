"""The tables of `docs/families.md`, from the checks of `tests/families`.

    python -m scripts.families    (in the root of the repository; runs the checks, then writes the page)

What is expected of a family stands with the family. Here, as in `tests/families/test_families.py`, it is held against
what happens; `tests/docs/test_families_page.py` compares the page with what is expected.
"""

from __future__ import annotations

import sys

from scripts.page import DOCS, escaped, with_table

PAGE = DOCS / "families.md"

sys.path += [str(DOCS.parent / "tests" / "families"), str(DOCS.parent / "tests")]

from every import FAMILIES, GROUPS, SERVED  # noqa: E402
from family import Family  # noqa: E402


def tables() -> str:
    """The share of families that are served, and one table for each group."""
    lines = [f"{len(SERVED)} of {len(FAMILIES)} families are served, {len(SERVED) / len(FAMILIES):.0%}.", ""]
    for title, families in GROUPS.items():
        lines += [f"## {title}", ""]
        lines += ["| family | class | tokens | scores | eviction | notes |", "|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cells(family))} |" for family in families]
        lines += [""]
    return "\n".join(lines)


def cells(family: Family) -> list[str]:
    """A line of a table."""
    found = ["refused", "", ""] if family.refused else ["exact", "exact", "exact"]
    words = f'"{escaped(family.refused)}"' if family.refused else ""
    return [family.name, f"`{family.kind.__name__}`", *found, "; ".join(filter(None, (family.notes, words)))]


def rendered(page: str) -> str:
    """The page with the tables in their place."""
    return with_table(page, "families", tables(), script="families")


def check() -> None:
    """Hold every family to what is expected of it."""
    import torch
    from checks import is_as_expected

    torch.set_num_threads(1)
    for family in FAMILIES:
        is_as_expected(family)
        print(f"{family.name}: {'refused' if family.refused else 'served'}")


if __name__ == "__main__":
    check()
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
