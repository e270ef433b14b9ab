"""What kvpolicy promises to keep: every exported name with its signature, in `docs/reference/public_names.txt`.

    python -m scripts.public_names    (in the root of the repository)

A test holds the file to the code, so that nothing that people may rely on changes by accident: a change of the API is a
change of this file, and a line of the changelog.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from scripts.page import DOCS

FILE = DOCS / "reference" / "public_names.txt"
PACKAGES = (
    "kvpolicy",
    "kvpolicy.testing",
    "kvpolicy_hf",
    "kvpolicy_hf.evaluate",
    "kvpolicy_hf.evaluate.tasks",
    "kvpolicy_hf.loading",
    "kvpolicy_hf.plots",
    "kvpolicy_hf.simulate",
    "kvpolicy_hf.tune",
)


def rendered() -> str:
    """The file."""
    lines = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        for one in sorted(package.__all__):
            lines += told(f"{name}.{one}", getattr(package, one))
    return "\n".join(lines) + "\n"


def told(name: str, what: Any) -> Iterator[str]:
    """A line for it, and one for each public member of a class of ours."""
    yield f"{name}{signature(what)}"
    if inspect.isclass(what) and is_ours(what):
        for member, found in sorted(vars(what).items()):
            if not member.startswith("_"):
                made = found.__func__ if isinstance(found, classmethod | staticmethod) else found
                yield f"{name}.{member}{signature(made)}"


def is_ours(what: Any) -> bool:
    """Whether it was defined here."""
    return str(what.__module__).startswith("kvpolicy")


def signature(what: Any) -> str:
    """Its arguments and their defaults; annotations are the type checker's, and addresses are nobody's."""
    made = inspect.isclass(what) and is_ours(what) and not issubclass(what, Exception | enum.Enum)
    if not inspect.isfunction(what) and (not made or getattr(what, "_is_protocol", False)):
        return ""
    found = inspect.signature(what)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    plain = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", plain)


if __name__ == "__main__":
    FILE.write_text(rendered(), encoding="utf-8")
