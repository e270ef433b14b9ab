"""A program that shows a broken law, to paste into a file."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any

__all__ = ["reproducer"]


def reproducer(law: str, component: Any, example: Any, backend: str) -> str:
    """The program; it raises the same `ConformanceError`."""
    imports = {"kvpolicy.testing": {"checks"}}
    for value in (component, example):
        for part in _parts(value):
            kind = type(part)
            if kind.__module__ != "builtins":
                imports.setdefault(_public(kind), set()).add(kind.__qualname__.partition(".")[0])
    lines = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    text = repr(component)
    if not _is_python(text):
        text = f"{type(component).__qualname__}()  # printed as {text!r}: fill in its arguments"
    where = "" if backend == "torch" else f", backend={backend!r}"
    return "\n".join(
        [*lines, "", f"component = {text}", f"example = {example!r}", f"checks.{law}(component, example{where})"]
    )


def _parts(value: Any) -> Iterator[Any]:
    """A value and all that its constructor call names."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _parts(item)
    elif dataclasses.is_dataclass(value) or isinstance(value, Enum) or type(value).__module__ != "builtins":
        yield value
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from _parts(getattr(value, field.name))


def _public(kind: type) -> str:
    """Where a user imports it from."""
    root, *_ = kind.__module__.split(".")
    if root != "kvpolicy":
        return kind.__module__
    if kind.__module__.startswith("kvpolicy.testing"):
        return "kvpolicy.testing"
    return kind.__module__ if kind.__module__.startswith("kvpolicy.backends") else "kvpolicy"


def _is_python(text: str) -> bool:
    try:
        return isinstance(ast.parse(text, mode="eval").body, ast.Call)
    except SyntaxError:
        return False
