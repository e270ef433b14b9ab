"""Write docs/performance.md and its plots: `python -m scripts.performance` in the root of the repository."""

from __future__ import annotations

from .page import PAGE, rendered
from .plots import PICTURES, PLOTS, draw
from .results import load


def main() -> None:
    found = load()
    PAGE.write_text(rendered(found), encoding="utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in PLOTS:
        draw(name, found, PICTURES / f"{name}.svg")


if __name__ == "__main__":
    main()
