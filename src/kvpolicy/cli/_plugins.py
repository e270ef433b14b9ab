"""Commands that other packages bring: entry points of the group ``kvpolicy.commands``.

An entry point names a function that `typer` can turn into a command, and the extras that it needs. Its module may need
packages that are not installed, and may be slow to import; so a plug-in is listed without being imported, and its
options are read before it is.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from ._spelled import definition_of, spelled

GROUP = "kvpolicy.commands"


def installed() -> Mapping[str, EntryPoint]:
    """Every plug-in command by name, in alphabetical order."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def load(entry: EntryPoint) -> Any:
    """The plug-in's command.

    Its options and its help are those that its source spells out; it is imported when they are right and it runs. Where
    the source does not say them by itself, it is imported at once; one that cannot be becomes a placeholder.
    """
    function = spelled(_tree(entry.module), entry.attr, load=partial(_imported, entry))
    if function is None:
        try:
            function = _loaded(entry)
        except ImportError as error:
            return placeholder(entry, error)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(entry.name)(function)
    return typer.main.get_command(app)


def _loaded(entry: EntryPoint) -> Callable[..., Any]:
    with Console(stderr=True).status(f"starting {entry.name}"):  # frameworks take seconds to import
        function: Callable[..., Any] = entry.load()
    return function


def _imported(entry: EntryPoint) -> Callable[..., Any]:
    """The plug-in's function; where it cannot be imported, the command ends with what to install."""
    try:
        return _loaded(entry)
    except ImportError as error:
        raise _unavailable(entry, error) from error


def _unavailable(entry: EntryPoint, reason: ImportError | None) -> typer.Exit:
    """Say what to install."""
    typer.secho(f"error: `kvpolicy {entry.name}` needs more than the core ({reason}).", fg="red", err=True)
    typer.echo(f"Install it with:  {how_to_install(entry)}", err=True)
    return typer.Exit(1)


def placeholder(entry: EntryPoint, reason: ImportError | None = None) -> Any:
    """A command with the plug-in's name and summary that takes any arguments and says what to install."""

    def unavailable() -> None:
        raise _unavailable(entry, reason)

    app = typer.Typer(add_completion=False)
    app.command(
        entry.name,
        help=summary(entry),
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(unavailable)
    return typer.main.get_command(app)


def how_to_install(entry: EntryPoint) -> str:
    """The pip command for a plug-in, with the extras that its entry point names: ``module:function [extra]``."""
    name = entry.module.partition(".")[0] if entry.dist is None else entry.dist.name
    return f'pip install "{name}[{",".join(entry.extras)}]"' if entry.extras else f"pip install {name}"


def summary(entry: EntryPoint) -> str:
    """The first line of the plug-in function's docstring, read from its source; nothing is executed.

    Empty where that cannot be read: one broken plug-in does not take the help of all others away.
    """
    definition = definition_of(_tree(entry.module), entry.attr)
    return "" if definition is None else (ast.get_docstring(definition) or "").partition("\n")[0]


def _tree(module: str) -> ast.Module:
    """A module's source, parsed; empty where there is none that can be read."""
    for source in _sources(module):
        if source.is_file():
            try:
                return ast.parse(source.read_bytes())
            except (OSError, SyntaxError, ValueError):  # ValueError: no text, or Python before 3.12 on a null byte
                break
    return ast.Module([], [])


def _sources(module: str) -> Iterator[Path]:
    """Where a module's source may be. Asking for a submodule's own spec would import its parents."""
    package, *rest = module.split(".")
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return
    if not rest:
        yield Path(spec.origin or "")
        return
    for root in spec.submodule_search_locations or ():
        yield Path(root, *rest).with_suffix(".py")
        yield Path(root, *rest, "__init__.py")
