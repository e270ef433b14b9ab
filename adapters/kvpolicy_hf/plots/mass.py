"""The picture of a replay: the share of attention that is still in the table, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..simulate.replay import Replay
from .colours import FAINT, INK, KEPT, RULE
from .errors import PlotError
from .page import EDGE, HEAD, WIDTH, Page
from .words import ticks

__all__ = ["mass_over_steps"]

OTHERS = "#535b65"
ACROSS, GUTTER, LABELS, NAME, FOOT = 3, 0.2, 0.42, 0.44, 0.55  # panels side by side; inches


def mass_over_steps(
    replays: Mapping[str, Replay],
    *,
    band: tuple[float, float] = (0.1, 0.9),
    title: str = "Attention mass that is still in the table",
) -> Figure:
    """A panel for each policy: the mean over layers at every decode step, and a band of its layers' quantiles.

    Args:
        replays: by the name of the policy, from `kvpolicy_hf.simulate.replay` on one record.
        band: the lower and the upper quantile.
        title: of the picture.

    Raises:
        PlotError: if there is no replay, if something is none (`compare` gives an error for a policy that cannot be
            replayed), or if the quantiles are none.
    """
    if not replays:
        raise PlotError("mass_over_steps({}): there is nothing to draw. Hint: {'h2o': replay(record, h2o(keep=0.2))}.")
    for name, made in replays.items():
        if not isinstance(made, Replay):
            raise PlotError(f"replays[{name!r}] is {made!r}, not a Replay. Hint: leave it out.")
    low, high = band
    if not 0 <= low <= high <= 1:
        raise PlotError(f"band={band!r}: two quantiles between 0 and 1, the lower one first, such as (0.1, 0.9).")
    lines = {name: made.mass.mean(axis=1) for name, made in replays.items()}
    bands = {name: np.quantile(made.mass, band, axis=1) for name, made in replays.items()}
    across = min(len(lines), ACROSS)
    wide = (WIDTH - 2 * EDGE - LABELS - (across - 1) * GUTTER) / across
    tall = 1.35 if across > 1 else 2.2
    line = NAME + tall
    page = Page(WIDTH, HEAD + ceil(len(lines) / across) * line + FOOT)
    page.head(title, _subtitle(replays, band))
    least = min(floor(4 * min(float(values.min()) for values in (*bands.values(), *lines.values()))) / 4, 0.75)
    steps = max(len(values) for values in lines.values())
    size = page.size_for(lines, 10.5, wide - 0.72, weight="bold")
    for place, name in enumerate(lines):
        left = EDGE + LABELS + place % across * (wide + GUTTER)
        top = HEAD + place // across * line
        page.text(left, top + 0.3, name, size=size, weight="bold")
        mean = f"mean {lines[name].mean():.0%}"
        page.text(left + wide, top + 0.3, mean, size=8.5, color=FAINT, ha="right")
        axes = page.chart(left, top + NAME, wide, tall)
        _draw(axes, name, lines, bands[name])
        axes.set_xlim(0.5, steps + 0.5)
        axes.set_ylim(least, 1.0)
        shares = np.linspace(least, 1.0, round((1 - least) * (4 if least < 0.75 else 20)) + 1)
        axes.set_yticks(shares, [f"{share:.0%}" for share in shares])
        axes.set_xticks([tick + 1 for tick in ticks(steps)[0]])
        if place % across:
            axes.set_yticklabels([])
        if place + across < len(lines):
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("decode step")
    return page.figure


def _draw(axes: Any, name: str, lines: Mapping[str, Any], edges: Any) -> None:
    """One policy's line and band, with the lines of the others behind."""
    for other, values in lines.items():
        if other != name:
            axes.plot(np.arange(1, len(values) + 1), values, color=OTHERS, linewidth=1, zorder=1)
    at = np.arange(1, len(lines[name]) + 1)
    axes.fill_between(at, edges[0], edges[1], color=KEPT, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(at, lines[name], color=KEPT, linewidth=1.8, zorder=3, marker="o" if len(at) == 1 else None)
    axes.grid(axis="y", color=RULE, linewidth=0.6, alpha=0.6)
    axes.spines["bottom"].set(visible=True, color=INK, linewidth=0.6)


def _subtitle(replays: Mapping[str, Replay], band: tuple[float, float]) -> str:
    layers = {made.mass.shape[1] for made in replays.values()}
    of = f"{min(layers)} layers" if len(layers) == 1 else f"{min(layers)} to {max(layers)} layers"
    among = "; grey: the other policies" if len(replays) > 1 else ""
    return f"line: mean of {of}; band: {band[0]:.0%} to {band[1]:.0%} of them{among}"
