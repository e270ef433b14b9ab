"""Draw a comparison: a line per policy, with what it keeps, what it finds, and what it loses in which layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .compare import BOUNDS, Results
from .replay import Replay

__all__ = ["draw_plot"]

BACKGROUND, INK, FAINT, RULE = "#ffffff", "#1f2328", "#59636e", "#d1d9e0"
# Okabe and Ito's colours, which colour-blind readers tell apart; the map below goes from light to dark.
MASS, RECALL, ERROR, BOUND = "#0072b2", "#56b4e9", "#d55e00", "#009e73"
MAP = "Oranges"
MIDDLE: dict[str, Any] = {"ha": "right", "va": "center"}
LINE, EDGE, HEAD, FOOT, BAR, GUTTER, CELL, ROWS = 0.3, 0.35, 1.25, 0.6, 1.75, 0.3, 0.32, 0.55  # inches
LONGEST, PIXELS = 60, 60_000  # characters of a policy's name; the most that a side of the picture may have


def draw_plot(title: str, subtitle: str, results: Results, path: Path) -> None:
    """Write the plot as PNG, the policy with the least output error on top; those without a replay are left out."""
    replays = {name: result for name, result in results.items() if isinstance(result, Replay)}
    names = sorted(replays, key=lambda name: float(replays[name].error.mean()))
    layers = replays[names[0]].error.shape[1]
    labels = [_label(name) for name in names]
    label = 0.085 * max(len(text) for text in labels) + 0.15
    heat = min(max(layers * CELL, 2.2), 5.0)
    width = 2 * EDGE + label + ROWS + 3 * (BAR + GUTTER) + heat + 0.75
    height = HEAD + LINE * len(names) + FOOT
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    figure.text(EDGE / width, 1 - 0.42 / height, title, fontsize=15, weight="bold", color=INK, parse_math=False)
    figure.text(EDGE / width, 1 - 0.7 / height, subtitle, fontsize=9.5, color=FAINT, parse_math=False)

    def axes(left: float, wide: float) -> Any:
        made: Any = figure.add_axes((left / width, FOOT / height, wide / width, LINE * len(names) / height))
        made.set_ylim(len(names) - 0.5, -0.5)
        made.tick_params(length=0, labelsize=8.5, colors=FAINT)
        for spine in made.spines.values():
            spine.set_visible(False)
        return made

    left = EDGE + label + ROWS
    figure.text((left - 0.12) / width, 1 - (HEAD - 0.11) / height, "rows", fontsize=9, color=FAINT, ha="right")
    mass, recall, error = (
        np.array([getattr(replays[name], kind).mean() for name in names]) for kind in ("mass", "recall", "error")
    )
    first = axes(left, BAR)
    _bars(first, mass, MASS, "attention mass kept", names)
    if BOUNDS[0] in names:
        first.axvline(mass[names.index(BOUNDS[0])], color=BOUND, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    first.set_yticks(range(len(names)), labels, fontsize=9.5, parse_math=False)
    first.tick_params(axis="y", pad=72 * ROWS)
    for number, name in enumerate(names):  # what each held, since a policy of the prompt only keeps every new row
        rows = f"{replays[name].rows.mean():.0f}"
        first.text(-0.12 / BAR, number, rows, transform=first.get_yaxis_transform(), fontsize=9, color=FAINT, **MIDDLE)
    for text, name in zip(first.get_yticklabels(), names, strict=True):
        text.set_color(BOUND if name in BOUNDS else INK)
        text.set_fontstyle("italic" if name in BOUNDS else "normal")
    _bars(axes(left + BAR + GUTTER, BAR), recall, RECALL, "top rows still there", names)
    _bars(axes(left + 2 * (BAR + GUTTER), BAR), error, ERROR, "output error", names, share=False)
    map_left = left + 3 * (BAR + GUTTER)
    errors = np.stack([replays[name].error.mean(axis=0) for name in names])
    scale = axes(map_left + heat + 0.12, 0.12)
    _heat(axes(map_left, heat), scale, errors)
    figure.savefig(path, dpi=min(150.0, PIXELS / max(width, height)), facecolor=BACKGROUND, format="png")


def _label(name: str) -> str:
    """A policy's name on one line, and not longer than the picture is wide."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _bars(
    axes: Any, values: np.ndarray[Any, Any], colour: str, title: str, names: Sequence[str], *, share: bool = True
) -> None:
    """One bar a policy with its number; the clairvoyant's in its own colour."""
    most = 1.0 if share else max(float(values.max()), 1e-9)
    axes.barh(range(len(names)), values, height=0.62, color=[BOUND if name in BOUNDS else colour for name in names])
    axes.axvline(0, color=RULE, linewidth=1)
    axes.set_xlim(0, most * 1.3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10, weight="bold", color=INK, loc="left", pad=8)
    for number, value in enumerate(values):
        text = f"{value:.0%}" if share else f"{value:.2f}"
        axes.text(most * 1.27, number, text, fontsize=8.5, color=INK, **MIDDLE)


def _heat(axes: Any, scale: Any, errors: np.ndarray[Any, Any]) -> None:
    """Output error of every policy in every layer, and what its colours mean."""
    most = float(errors.max())
    limits = Normalize(0, min(max(most, 1e-9), 1.0))  # beyond 1 an output of zeros would be nearer
    image = axes.imshow(errors, aspect="auto", cmap=MAP, norm=limits, interpolation="nearest")
    count = errors.shape[1]
    ticks = sorted({round(number * (count - 1) / max(min(count, 6) - 1, 1)) for number in range(min(count, 6))})
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks([])
    axes.set_xlabel("layer", fontsize=9, color=FAINT)
    axes.set_title("output error by layer", fontsize=10, weight="bold", color=INK, loc="left", pad=8)
    axes.set_yticks(np.arange(len(errors) + 1) - 0.5, minor=True)
    axes.grid(which="minor", axis="y", color=BACKGROUND, linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.figure.colorbar(image, cax=scale, extend="max" if most > 1 else "neither", extendfrac=0.03)
    scale.tick_params(length=0, labelsize=8.5, colors=FAINT)
    scale.set_ylim(0, limits.vmax)
    for spine in scale.spines.values():
        spine.set_visible(False)
