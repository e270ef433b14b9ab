"""The command group: plug-in commands are imported only when they run, and kvpolicy's own errors stay short."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from .._errors import KVPolicyError
from ._plugins import installed, load, placeholder


class CommandGroup(TyperGroup):
    """A group that lists plug-ins by a placeholder and swaps in the real command when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The built-in commands, then the plug-ins."""
        own = list(super().list_commands(ctx))
        return own + [name for name in installed() if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A built-in command, or the placeholder of a plug-in: nothing is imported for `--help`."""
        own = super().get_command(ctx, cmd_name)
        if own is None and cmd_name in installed():
            return placeholder(installed()[cmd_name])
        return own

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the plug-in that is named. A shell that completes a line does not wait for a framework."""
        if args and args[0] not in self.commands and args[0] in installed() and not ctx.resilient_parsing:
            self.add_command(load(installed()[args[0]]), args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error that kvpolicy raised on purpose is one red line and exit code 2."""
        try:
            return super().invoke(ctx)
        except KVPolicyError as error:
            Console(stderr=True, soft_wrap=True).print(Text(f"error: {error}", style="bold red"))
            raise typer.Exit(2) from None
