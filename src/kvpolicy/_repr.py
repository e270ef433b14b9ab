"""Values print as the constructor call that makes them, without the arguments that equal their defaults.

On one line for `repr`; where people read, one argument a line wherever a call does not fit.
"""

from __future__ import annotations

import ast
from dataclasses import MISSING, Field, fields
from typing import Any

__all__ = ["constructor_repr", "notebook_repr", "pretty"]

_INDENT = 4


def constructor_repr(self: Any) -> str:
    """``Name(field=value, ...)`` of a dataclass instance, defaults left out; assign it to ``__repr__``."""
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr and not _default(self, f))
    return f"{type(self).__name__}({shown})"


def pretty(value: object, width: int = 88) -> str:
    """``repr(value)``, one argument a line wherever a call does not fit; unchanged if it is not Python."""
    try:
        tree = ast.parse(repr(value), mode="eval")
    except SyntaxError:  # a stage of someone else's, with a repr of its own
        return repr(value)
    return _lay_out(tree.body, 0, width)


def _lay_out(node: ast.expr, column: int, width: int) -> str:
    line = ast.unparse(node)
    if column + len(line) <= width or not isinstance(node, ast.Call) or not (node.args or node.keywords):
        return line
    inner = column + _INDENT
    parts = [_lay_out(argument, inner, width - 1) for argument in node.args]
    for keyword in node.keywords:
        name = f"{keyword.arg}="
        parts.append(name + _lay_out(keyword.value, inner, width - 1 - len(name)))
    pad = " " * inner
    return f"{ast.unparse(node.func)}(\n" + "".join(f"{pad}{part},\n" for part in parts) + " " * column + ")"


def notebook_repr(self: object, printer: Any, cycle: bool) -> None:
    """Assign it to ``_repr_pretty_``, and IPython shows the value over several lines."""
    printer.text(pretty(self))


def _default(self: Any, f: Field[Any]) -> bool:
    value = getattr(self, f.name)
    if f.default is not MISSING:
        return bool(value == f.default)
    return f.default_factory is not MISSING and bool(value == f.default_factory())
