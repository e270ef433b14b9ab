"""`kvpolicy policies`: the recipes there are."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._pretty import marked
from ._recipes import recipes


def policies() -> None:
    """List the recipes: published methods as compositions of stages.

    Each with one sentence on what stays, and the paper.

    Examples:
        kvpolicy policies
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("recipe", style="bold cyan", no_wrap=True)
    table.add_column("what it does", ratio=3)
    table.add_column("source", style="dim", ratio=2)
    for recipe in recipes():
        table.add_row(recipe.name, marked(recipe.summary), Text(recipe.short_source))
    console = Console()
    console.print(table)
    console.print("  Look into one: [bold]kvpolicy explain NAME[/bold]")
