"""The tables of `kvpolicy simulate`: what each policy keeps and loses, in all and layer by layer."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from .compare import BOUNDS, Results
from .replay import Replay

__all__ = ["errors_table", "shown_layers", "summary_table"]

MOST_LAYERS = 8


def summary_table(results: Results) -> Table:
    """A row per policy: means over decode steps and layers; below it, why a policy has none."""
    table = _table("means over decode steps and layers")
    for name in ("rows held", "mass kept", "recall of top rows", "output error"):
        table.add_column(name, justify="right", no_wrap=True)
    reasons = Text(style="not italic yellow")
    for name, result in results.items():
        if isinstance(result, Replay):
            shares = f"{result.mass.mean():.1%}", f"{result.recall.mean():.1%}"
            table.add_row(
                Text(name), f"{result.rows.mean():.1f}", *shares, f"{result.error.mean():.3f}", style=_style(name)
            )
        else:
            table.add_row(Text(name), "not replayed", style="yellow")
            reasons.append(f"{name}: {result}\n")
    if reasons:
        table.caption, table.caption_justify = reasons, "left"
    return table


def errors_table(results: Results) -> Table:
    """A row per policy, a column per layer: the output error, mean over decode steps."""
    replays = {name: result for name, result in results.items() if isinstance(result, Replay)}
    layers = shown_layers(next(iter(replays.values())).error.shape[1])
    table = _table("output error of each layer, ||o - o_full|| / ||o_full||")
    for layer in layers:
        table.add_column(f"layer {layer + 1}", justify="right", no_wrap=True)
    for name, result in replays.items():
        errors = result.error.mean(axis=0)
        table.add_row(Text(name), *(f"{errors[layer]:.3f}" for layer in layers), style=_style(name))
    return table


def shown_layers(layers: int) -> list[int]:
    """All layers, or of a model with more than eight, eight spread over it."""
    count = min(layers, MOST_LAYERS)
    return [round(number * (layers - 1) / max(count - 1, 1)) for number in range(count)]


def _table(title: str) -> Table:
    """A table that begins with the policy's name."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    table.add_column("policy", style="cyan", no_wrap=True)
    return table


def _style(name: str) -> str:
    return "italic" if name in BOUNDS else ""
