"""Policies as text, for command lines: ``h2o``, ``elastic_cache(last=8)``."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from ._check import LONGEST, WIDEST, closest, shown
from ._errors import PolicyError
from ._policy import Policy
from .policies import RECIPES

__all__ = ["from_text"]

_BUDGETS = ("keep", "rows", "memory")


def from_text(text: str, *, keep: float | None = None) -> Policy:
    """The policy that a recipe's name, or its call with literal keyword arguments, describes. Nothing is evaluated.

    Args:
        text: ``"h2o"`` or ``"elastic_cache(last=8, rows=64)"``.
        keep: the budget where the text names none; left out for recipes that take no budget.

    Raises:
        PolicyError: if the text is no such call, there is no such recipe, or it refuses the arguments.
    """
    name, arguments = call_of(text)
    if name not in RECIPES:
        raise PolicyError(f"no recipe {shown(name)}.{closest(name.lower(), RECIPES)}")
    takes = inspect.signature(RECIPES[name]).parameters
    if unknown := [argument for argument in arguments if argument not in takes]:
        raise PolicyError(f"{name}({unknown[0][:LONGEST]}=...): it takes {', '.join(takes) or 'no arguments'}.")
    missing = [n for n, p in takes.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise PolicyError(f"{name}() needs {missing[0]}=. Hint: '{name}({missing[0]}=...)' with a plain value.")
    if keep is not None and "keep" in takes and not any(budget in arguments for budget in _BUDGETS):
        arguments["keep"] = keep
    return RECIPES[name](**arguments)


def call_of(text: Any) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a call."""
    try:
        if not isinstance(text, str):
            raise ValueError
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        if not isinstance(call.func, ast.Name) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        if any(_is_endless(part) for part in ast.walk(call)):
            raise ValueError
        values = [(str(word.arg), ast.literal_eval(word.value)) for word in call.keywords]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the last two: brackets without end
        raise PolicyError(
            f"policy: {shown(text)} is neither a recipe nor a call of one with plain arguments. "
            f"Hint: h2o, or 'elastic_cache(last=8)'."
        ) from None
    arguments = dict(values)
    if len(arguments) < len(values):
        names = [name for name, _ in values]
        twice = next(name for name in arguments if names.count(name) > 1)
        raise PolicyError(f"policy: {shown(text)} gives {twice}= twice. Hint: leave one of them.")
    return call.func.id, arguments


def _is_endless(part: ast.AST) -> bool:
    return isinstance(part, ast.Constant) and isinstance(part.value, int) and part.value.bit_length() > WIDEST
