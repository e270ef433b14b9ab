"""The `kvpolicy` command. Further commands are plug-ins: entry points of the group ``kvpolicy.commands``."""

from __future__ import annotations

from typing import Annotated

import typer

from ._group import CommandGroup
from .explain import explain
from .policies import policies

__all__ = ["app", "main"]

app = typer.Typer(
    name="kvpolicy",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(policies)
app.command()(explain)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from .. import __version__

    typer.echo(f"kvpolicy {__version__}")
    raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """KV-cache policies: which cache entries stay, which merge, which go.

    Every command says more: `kvpolicy COMMAND --help`.

    Examples:
        kvpolicy policies

        kvpolicy demo --help
    """


def main() -> None:
    """Entry point of the console script."""
    app()
