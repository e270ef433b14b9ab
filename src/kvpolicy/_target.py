"""What a command line names: a recipe, or something in a module of the user's."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from . import _text
from ._check import closest
from ._errors import PolicyError
from .policies import RECIPES

__all__ = ["from_target"]


def from_target(target: str, *, keep: float | None = None) -> Any:
    """The policy, stage or whatever else a command line names.

    Args:
        target: a recipe (``"h2o"``, ``"elastic_cache(keep=0.5)"``), or ``"module:Name"``: an instance, or a class or
            function that makes one, with plain keyword arguments if it needs any (``"my_module:MyMerger(window=4)"``).
            The module may lie in the working directory.
        keep: the budget of a recipe, or of a function of the user's that takes ``keep``, where the text names none.

    Raises:
        PolicyError: if there is no such module or name, or it cannot be made so; nothing but the module is run.
    """
    module, colon, call = target.partition(":")
    if not colon:
        return _recipe(target, keep)
    name, arguments = _text.call_of(call)
    found = _imported(module, target)
    if not hasattr(found, name):
        names = [known for known in vars(found) if not known.startswith("_")]
        raise PolicyError(f"{target!r}: module {module!r} has no {name!r}.{closest(name, names)}")
    made = getattr(found, name)
    if not _makes(made):
        if arguments:
            raise PolicyError(
                f"{target!r}: {name} is an instance already and takes no arguments. Hint: {module}:{name}."
            )
        return made
    if keep is not None and "keep" not in arguments and _takes_keep(made):
        arguments["keep"] = keep
    try:
        return made(**arguments)
    except TypeError as error:
        raise PolicyError(
            f"{target!r} cannot be made: {error}. Hint: '{module}:{name}(argument=value)' with plain values."
        ) from error


def _recipe(target: str, keep: float | None) -> Any:
    try:
        return _text.from_text(target, keep=keep)
    except PolicyError as error:
        if target.partition("(")[0].strip() in RECIPES:
            raise
        raise PolicyError(f"{error} For a policy or a stage of your own: {_with_colon(target)}.") from None


def _with_colon(target: str) -> str:
    """How something of the user's is named: ``module.Name`` and ``module.py`` say enough to spell it out."""
    path, bracket, arguments = target.partition("(")
    module, _, name = path.strip().rpartition(".")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        return "module:Name"
    return f"{module}:Name" if name == "py" else f"{module}:{name}{bracket}{arguments}"


def _imported(module: str, target: str) -> Any:
    if not module or module.startswith("."):
        raise PolicyError(f"{target!r}: {module!r} is no name of a module.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` would
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise PolicyError(
            f"{target!r}: there is no module {error.name!r} here or among what is installed. "
            f"Hint: the name of the module without .py, from the folder that it is in."
        ) from error


def _makes(value: Any) -> bool:
    """Whether it is called to make a component: a class or a function, not an instance of a stage."""
    return isinstance(value, type) or inspect.isroutine(value)


def _takes_keep(made: Any) -> bool:
    try:
        return "keep" in inspect.signature(made).parameters
    except ValueError:  # built in, and without one
        return False
