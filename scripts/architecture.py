"""The drawing and the table of `docs/architecture.md`, from the imports that there are.

    python -m scripts.architecture    (in the root of the repository)

Modules are drawn in families. An arrow says that a family imports another one, and arrows that follow from others are
left out. What must hold is in `pyproject.toml` under `tool.importlinter`; this draws what does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import grimp
from scripts.module_families import FAMILIES, PACKAGES
from scripts.page import DOCS, table, with_table
from scripts.svg import Drawing

__all__ = ["PAGE", "PICTURE", "drawn", "imports", "levels", "needed", "tabled"]

PAGE = DOCS / "architecture.md"
PICTURE = DOCS / "assets" / "architecture.svg"


def family_of(module: str) -> str:
    """The family that names the module, or the nearest package above it.

    Raises:
        LookupError: if there is none: a new module belongs to a family.
    """
    of = {name: family.name for family in FAMILIES for name in family.modules}
    above = module
    while above not in of or (above in PACKAGES and above != module):
        above, _, last = above.rpartition(".")
        if not last or not above:
            raise LookupError(f"{module} is in no family of scripts/module_families.py.")
    return of[above]


def imports() -> set[tuple[str, str]]:
    """Which family imports which, leaving out what is for type checkers alone."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = family_of(module), family_of(imported)
            if pair[0] != pair[1]:
                found.add(pair)
    return found


def needed(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that do not follow from the others."""
    pairs = set(pairs)
    below = {name: _below(name, pairs) for name, _ in pairs}
    return {
        (upper, lower)
        for upper, lower in pairs
        if not any(lower in below.get(other, set()) for one, other in pairs if one == upper and other != lower)
    }


def levels(pairs: Iterable[tuple[str, str]]) -> Mapping[str, int]:
    """The row of each family, 0 at the bottom: above all that it imports, and close below those that import it.

    Raises:
        ValueError: if families import each other in a circle.
    """
    pairs = set(pairs)
    if circles := sorted({name for name, _ in pairs if name in _below(name, pairs)}):
        raise ValueError(f"these families import each other: {', '.join(circles)}.")

    def lowest(name: str) -> int:
        return max((1 + lowest(lower) for upper, lower in pairs if upper == name), default=0)

    def level(name: str) -> int:
        return min((level(upper) - 1 for upper, lower in pairs if lower == name), default=lowest(name))

    return {family.name: level(family.name) for family in FAMILIES}


def _below(name: str, pairs: set[tuple[str, str]]) -> set[str]:
    """All that it imports, directly or not."""
    found: set[str] = set()
    todo = [name]
    while todo:
        upper = todo.pop()
        new = {lower for one, lower in pairs if one == upper} - found
        found |= new
        todo.extend(new)
    return found


BOX, GAP, ROW, MARGIN, HIGH = 150.0, 26.0, 76.0, 24.0, 44.0


def drawn() -> str:
    """The SVG."""
    pairs = imports()
    height = levels(pairs)
    top, columns = max(height.values()), 1 + max(family.column for family in FAMILIES)
    cells = {(family.column, height[family.name]) for family in FAMILIES}
    place = {family.name: (family.column, height[family.name]) for family in FAMILIES}
    drawing = Drawing(
        2 * MARGIN + columns * BOX + (columns - 1) * GAP,
        2 * MARGIN + top * ROW + HIGH,
        "The layers of kvpolicy",
        "; ".join(f"{upper} imports {lower}" for upper, lower in sorted(needed(pairs))) + ".",
    )

    def corner(cell: tuple[int, int]) -> tuple[float, float]:
        return MARGIN + cell[0] * (BOX + GAP), MARGIN + (top - cell[1]) * ROW

    for upper, lower in sorted(needed(pairs)):
        way = _way(place[upper], place[lower], cells)
        points = [corner(cell) for cell in way]
        leaves = [cell[0] == way[0][0] for cell in way[:-1]]  # under a cell of its own column, on top of another's
        ends = [(x, y + HIGH) if under else (x, y) for (x, y), under in zip(points, [*leaves, False], strict=True)]
        drawing.line("line", *((x + BOX / 2, y) for x, y in ends), arrow=True)
    for family in FAMILIES:
        x, y = corner(place[family.name])
        drawing.rect(family.look, x, y, BOX, HIGH)
        drawing.text(x + BOX / 2, y + HIGH / 2 + 5, family.name, "m b")
    return str(drawing)


def _way(upper: tuple[int, int], lower: tuple[int, int], cells: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """From one cell to another, round the boxes between them: down a column that is free there."""
    between = range(lower[1] + 1, upper[1])
    for column, turn in ((lower[0], upper[1] - 1), (upper[0], lower[1] + 1)):
        if not any((column, row) in cells for row in between):
            return list(dict.fromkeys([upper, (column, turn), lower]))
    return [upper, lower]


def tabled() -> str:
    """Folders and what they are for, from their own docstrings."""
    rows = []
    for package in PACKAGES:
        for path in _parts(package):
            place = path.name if path.name != "__init__.py" else path.parent.name
            shown = f"{package}/{place}/" if path.name == "__init__.py" else f"{package}/{place}"
            rows.append((f"`{shown}`", _first(path)))
    return table(("folder or module", "one idea"), rows) + "\n"


def _parts(package: str) -> list[Path]:
    """Its packages, then its modules."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    return [*sorted(root.glob("*/__init__.py")), *sorted(path for path in root.glob("*.py") if path.name[:2] != "__")]


def _first(path: Path) -> str:
    """The first line of a module's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n\n")[0].replace("\n", " ").replace("``", "`")


def main() -> None:
    """Write the drawing, and the table into the page."""
    PICTURE.write_text(drawn(), encoding="utf-8")
    page = with_table(PAGE.read_text(encoding="utf-8"), "folders", tabled(), script="architecture")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
