"""A program that shows a broken law, to paste into a file."""

from __future__ import annotations

import ast
import builtins
import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

__all__ = ["reproducer"]

_NUMBERS: Mapping[str, str] = {"inf": "math", "nan": "math"}  # floats that print as names


def reproducer(law: str, component: Any, example: Any, backend: str) -> str:
    """The program; it raises the same `ConformanceError`.

    What does not print as a constructor call is a variable of its own, with a comment: the user fills it in.
    """
    where = "" if backend == "torch" else f", backend={backend!r}"
    body = [*_made(component), f"example = {example!r}", f"checks.{law}(component, example{where})"]
    return "\n".join([*_imports("\n".join(body), (component, example)), "", *body])


def _made(component: Any) -> list[str]:
    """Lines that make the component: first such parts of it as cannot be read off what it prints as."""
    text, lines = repr(component), list[str]()
    for part in _parts(component):
        if isinstance(part, Enum):
            text = text.replace(repr(part), f"{type(part).__qualname__}.{part.name}")
        elif part is not component and not _is_call(shown := repr(part)) and shown in text:
            name = f"part_{len(lines) // 2 + 1}"
            lines += _to_fill_in(name, part)
            text = text.replace(shown, name)
    return [*lines, f"component = {text}"] if _is_call(text) else _to_fill_in("component", component)


def _to_fill_in(variable: str, value: Any) -> list[str]:
    """A comment, and the variable as far as it can be guessed."""
    kind = type(value)
    named = kind.__module__ != "builtins" and kind.__qualname__.isidentifier()  # not <locals>, not a function
    made = f"{kind.__qualname__}()" if named else "..."
    return [
        f"# Fill in how {variable} is made: it prints as {repr(value)!r}, which is no constructor call.",
        f"{variable} = {made}",
    ]


def _imports(body: str, values: Any) -> list[str]:
    """What the names in the body need."""
    homes = {**_NUMBERS, **_homes(values), "checks": "kvpolicy.testing"}
    nodes = [node for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)]
    made = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    imports: dict[str, set[str]] = {}
    missing = set()
    for name in {node.id for node in nodes} - made:
        if name in homes:
            imports.setdefault(homes[name], set()).add(name)
        elif not hasattr(builtins, name):
            missing.add(name)
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    return [*lines, *(f"# import {name}, too: where it comes from is not known" for name in sorted(missing))]


def _homes(values: Any) -> Mapping[str, str]:
    """The modules of all classes among the values and their parts."""
    kinds = [type(part) for part in _parts(values)]
    return {kind.__qualname__.partition(".")[0]: _public(kind) for kind in kinds if kind.__module__ != "builtins"}


def _parts(value: Any) -> Iterator[Any]:
    """All that a value's constructor call is made of, innermost first; plain numbers and texts left out."""
    if isinstance(value, (tuple, list, set, frozenset)):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Mapping):
        yield from _parts([*value, *value.values()])
    elif not isinstance(value, type(None) | bool | int | float | complex | str | bytes) or isinstance(value, Enum):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                yield from _parts(getattr(value, field.name))
        yield value


def _public(kind: type) -> str:
    """Where a user imports it from."""
    root, *_ = kind.__module__.split(".")
    if root != "kvpolicy":
        return kind.__module__
    if kind.__module__.startswith("kvpolicy.testing"):
        return "kvpolicy.testing"
    return kind.__module__ if kind.__module__.startswith("kvpolicy.backends") else "kvpolicy"


def _is_call(text: str) -> bool:
    try:
        return isinstance(ast.parse(text, mode="eval").body, ast.Call)
    except (SyntaxError, ValueError):  # ValueError: Python before 3.12 on a null byte
        return False
