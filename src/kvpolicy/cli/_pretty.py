"""For the terminal: constructor calls over several lines, as a formatter would; docstring text with its code marked."""

from __future__ import annotations

import ast

from rich.text import Text

INDENT = 4


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
    inner = column + INDENT
    parts = [_lay_out(argument, inner, width - 1) for argument in node.args]
    for keyword in node.keywords:
        name = f"{keyword.arg}="
        parts.append(name + _lay_out(keyword.value, inner, width - 1 - len(name)))
    pad = " " * inner
    return f"{ast.unparse(node.func)}(\n" + "".join(f"{pad}{part},\n" for part in parts) + " " * column + ")"


def marked(text: str) -> Text:
    """A docstring's text with what stands between double backticks as code."""
    parts = text.split("``")
    return Text.assemble(*((part, "cyan" if number % 2 else "") for number, part in enumerate(parts)))
