"""Write the tables of docs/licences.md: what kvpolicy installs, and under which licences.

    python -m scripts.licences

A package says itself what its licence is: as an SPDX expression, as a classifier, or in words. Read from the
environment of `make setup`, whose versions are those of constraints.txt.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution, metadata

from packaging.licenses import canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .page import DOCS, table, with_table

PAGE = DOCS / "licences.md"
OURS = ("test", "dev", "docs")  # extras for work on kvpolicy itself
CORE = "core"

# Licences that let a package be used beside, and by, one under Apache-2.0. MPL-2.0 asks for the source of its own files
# where these are given on or changed; kvpolicy does neither.
ALLOWED = frozenset(
    "0BSD Apache-2.0 BSD BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python ISC LLVM-exception MIT MIT-CMU MPL-2.0 "
    "PSF-2.0 Zlib".split()
)

# What packages say that give no SPDX expression. "BSD" is all that some say.
SAID = {
    "Apache Software License": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}

HEAD = ("package", "licence", "comes with")

# torch for CUDA requires them. They are not read: NVIDIA's licence is on none of these lists, and the page says so.
NVIDIA = ("cuda-", "nvidia-")


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, rows in tables().items():
        listed = table(HEAD, [(package, *row) for package, row in rows.items()])
        page = with_table(page, name, listed, script="licences")
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)


def tables() -> dict[str, dict[str, tuple[str, str]]]:
    """Licence and extras of each package: of those that pyproject.toml names, and of what these need."""
    named = declared()
    whole: dict[str, set[str]] = {}
    for extra, requirements in named.items():
        for package in closure(requirements):
            whole.setdefault(package, set()).add(extra)
    direct = {canonicalize_name(r.name) for requirements in named.values() for r in requirements}
    rows = {name: (licence(name), comes_with(whole[name])) for name in sorted(whole)}
    return {
        "direct dependencies": {name: row for name, row in rows.items() if name in direct},
        "what they need": {name: row for name, row in rows.items() if name not in direct},
    }


def comes_with(extras: Collection[str]) -> str:
    """The extras that bring a package; what the core brings is always there."""
    return CORE if CORE in extras else ", ".join(f"`{extra}`" for extra in sorted(extras))


def declared() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: the core's, and that of each extra for users."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: Mapping[str, list[str]] = project["optional-dependencies"]

    def whole(requirements: Iterable[str]) -> list[Requirement]:
        """With those of the extras that are named, as in ``kvpolicy[hf]``."""
        found = []
        for requirement in map(Requirement, requirements):
            if requirement.name == project["name"]:
                found += whole(line for extra in sorted(requirement.extras) for line in extras[extra])
            else:
                found.append(requirement)
        return found

    return {CORE: whole(project["dependencies"])} | {
        extra: whole(requirements) for extra, requirements in extras.items() if extra not in OURS
    }


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """The packages that these need here, and those that these need; as far as they are installed."""
    found: set[str] = set()
    asked: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name.startswith(NVIDIA) or str(requirement) in asked:
            continue
        asked.add(str(requirement))
        try:
            needs = map(Requirement, distribution(name).requires or ())
        except PackageNotFoundError:
            continue
        found.add(name)
        extras = requirement.extras or {""}
        waiting += [r for r in needs if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return found


def licence(name: str) -> str:
    """What a package says its licence is, in SPDX's names.

    Raises:
        ValueError: if it says nothing, or in words that are not known.
    """
    about = metadata(name)
    words = about.get("License-Expression") or ""
    if words:
        return str(canonicalize_license_expression(words))
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if "License ::" in line]
    said = [SAID.get(line, line) for line in classifiers] or [about.get("License") or ""]
    try:
        return " AND ".join(SAID.get(one) or str(canonicalize_license_expression(one)) for one in said)
    except ValueError as error:
        if set(said) <= ALLOWED:  # "BSD" is no name of SPDX's
            return " AND ".join(said)
        raise ValueError(f"{name} says {said}: {error}. Hint: read its licence, and add what it says.") from error


def parts(expression: str) -> set[str]:
    """``MIT AND (Apache-2.0 OR BSD-2-Clause)``: the three licences."""
    return set(re.findall(r"[\w.-]+", expression)) - {"AND", "OR", "WITH"}


if __name__ == "__main__":
    main()
