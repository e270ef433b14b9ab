"""A function's signature as its module's source spells it: what a command takes is known before the module is imported.

Most modules of commands import what takes seconds, and their signatures need none of it.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

__all__ = ["definition_of", "spelled"]

LIGHT = sys.stdlib_module_names | {"typer"}


def definition_of(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    """Where a module defines a function; None where it does not, or only inside of something else."""
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return next(found, None)


def spelled(tree: ast.Module, name: str, *, load: Callable[[], Callable[..., Any]]) -> Callable[..., Any] | None:
    """A function with the signature and the docstring of one in a module's source, that loads it when it is called.

    Args:
        tree: the module. Of it nothing is executed but the signature, and what its names come from.
        name: of the function.
        load: gives the function itself.

    Returns:
        None where there is no such function, or it takes more to know its signature: it is decorated, or a name in it
        comes neither from the standard library nor from typer, and is no plain constant of the module.
    """
    definition = definition_of(tree, name)
    if definition is None or definition.decorator_list:
        return None
    known = {bound: node for node in tree.body for bound in _bound(node)}
    needed = _names([definition.args, definition.returns], ast.Load) - vars(builtins).keys()
    if not needed <= known.keys():
        return None
    wanted = [node for node in tree.body if _is_future(node) or any(known[one] is node for one in needed)]
    definition.body = definition.body[:1] if ast.get_docstring(definition) is not None else [ast.Pass()]
    alone = ast.fix_missing_locations(ast.Module([*wanted, definition], []))
    names: dict[str, Any] = {}
    exec(compile(alone, name, "exec", dont_inherit=True), names)

    @wraps(names[name])
    def called(**given: Any) -> Any:
        return load()(**given)

    return called


def _bound(node: ast.stmt) -> set[str]:
    """The names that an import of a light module, or a plain constant, gives a value; none of any other statement."""
    if isinstance(node, ast.Import) and all(_is_light(alias.name) for alias in node.names):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level and _is_light(node.module or ""):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign) and _is_constant(node.value):
        return _names(node.targets, ast.Store)
    return set()


def _is_light(module: str) -> bool:
    return module.partition(".")[0] in LIGHT


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_constant(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def _names(parts: Iterable[ast.AST | None], context: type[ast.expr_context]) -> set[str]:
    """The names that are read, or given a value, in these parts."""
    nodes = (node for part in parts if part is not None for node in ast.walk(part))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, context)}
