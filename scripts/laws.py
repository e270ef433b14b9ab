"""The table of laws in `docs/conformance.md`, from the laws themselves.

    python -m scripts.laws    (in the root of the repository; writes the page)

`tests/docs/test_conformance_page.py` compares the two.
"""

from __future__ import annotations

from scripts.page import DOCS, escaped, with_table

from kvpolicy.testing import Law
from kvpolicy.testing._law import MERGERS, STAGES
from kvpolicy.testing.checks import LAWS

PAGE = DOCS / "conformance.md"

NAMES = {
    "ImportanceScorer": "scorers",
    "Scheduler": "schedulers",
    "Allocator": "allocators",
    "Selector": "selectors",
    "Merger": "mergers",
    "Assigner": "assigners",
    "Weigher": "weighers",
    "Recaller": "recallers",
    "Policy": "policies",
    "Backend": "backends",
}


def table() -> str:
    """Two tables, those that are tried first and the others."""
    first = [law for law in LAWS.values() if law.structural]
    others = [law for law in LAWS.values() if not law.structural]
    return "\n".join(
        [
            "Structural laws. Where one of them fails the others make no sense, and are not tried.",
            "",
            "| law | what it says | about |",
            "|---|---|---|",
            *(f"| `{law.name}` | {escaped(law.formula)} | {about(law)} |" for law in first),
            "",
            "The others. Each rests on the structural ones, and on those in the last column.",
            "",
            "| law | what it says | about | rests on |",
            "|---|---|---|---|",
            *(f"| `{law.name}` | {escaped(law.formula)} | {about(law)} | {rests_on(law)} |" for law in others),
            "",
        ]
    )


def about(law: Law) -> str:
    """The kinds of component, in words."""
    kinds, words = set(law.kinds), []
    if kinds >= set(STAGES):
        words.append("all stages")
        kinds -= set(STAGES)
    elif len(missing := set(STAGES) - kinds) == 1:
        words.append(f"all stages but {NAMES[missing.pop()]}")
        kinds -= set(STAGES)
    elif kinds >= set(MERGERS):
        words.append("mergers and their halves")
        kinds -= set(MERGERS)
    return ", ".join([*words, *(word for kind, word in NAMES.items() if kind in kinds)])


def rests_on(law: Law) -> str:
    """Names of the laws, besides the structural ones."""
    return ", ".join(f"`{name}`" for name in law.after)


def rendered(page: str) -> str:
    """The page with the tables in their place."""
    return with_table(page, "laws", table(), script="laws")


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
