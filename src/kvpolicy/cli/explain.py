"""`kvpolicy explain NAME`: what a recipe computes and what it is made of."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from .._repr import pretty
from .._target import from_target
from ..policies import RECIPES
from ._pretty import marked
from ._recipes import KEEP, Recipe, find

CODE = "ansi_dark"


def explain(
    name: Annotated[
        str,
        typer.Argument(
            help="A recipe, as `kvpolicy policies` lists them, a call of one, or module:Name of something of your own.",
            show_default=False,
            autocompletion=lambda: list(RECIPES),
        ),
    ],
) -> None:
    """Show what a recipe computes, its source, its arguments and the stages it is made of.

    The composition is Python: it can be pasted, and changed. Of a call, or
    of what is your own, it is all that is shown.

    Examples:
        kvpolicy explain elastic_cache

        kvpolicy explain "elastic_cache(last=8)"

        kvpolicy explain my_module:my_policy
    """
    console = Console()
    if name not in RECIPES:
        show_composition(console, name, from_target(name, keep=KEEP))
        return
    recipe = find(name)
    console.print(Text(f"\n{recipe.name}", style="bold cyan"), Text(signature(recipe), style="dim"), sep="")
    console.print(marked(recipe.summary))
    console.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("formula", marked(recipe.formula))
    facts.add_row("source", marked(recipe.source))
    facts.add_row("good for", marked(recipe.good_for))
    facts.add_row("not for", marked(recipe.not_for))
    console.print(facts)
    if recipe.arguments:
        console.print(Text("\narguments", style="bold"))
        arguments = Table.grid(padding=(0, 2))
        arguments.add_column(style="cyan", no_wrap=True)
        arguments.add_column()
        for argument, text in recipe.arguments:
            arguments.add_row(argument, marked(text))
        console.print(Padding(arguments, (0, 0, 0, 2)))
    call = f"{recipe.name}({', '.join(f'{name}={value!r}' for name, value in recipe.example_arguments.items())})"
    show_composition(console, f"kvpolicy.{call}", recipe.example())


def show_composition(console: Console, name: str, made: Any) -> None:
    """Print the stages that something is made of, as Python."""
    console.print(Text.assemble("\n", ("composition", "bold"), (f"  of {name}", "dim")))
    code = Syntax(pretty(made), "python", theme=CODE, background_color="default", word_wrap=True)
    console.print(Padding(code, (0, 0, 1, 2)))


def signature(recipe: Recipe) -> str:
    """``(*, keep=None, first=1)``: names and defaults, without the annotations."""
    parameters = inspect.signature(recipe.function).parameters.values()
    return str(inspect.Signature([parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]))
