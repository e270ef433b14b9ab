"""The picture of a budget: how many rows each head of each layer holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import ceil
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .colours import BACKGROUND, FAINT, INK, KEPT, ROWS, RULE
from .errors import PlotError
from .history import Floats, History
from .page import EDGE, HEAD, WIDTH, Page, separate
from .words import number, ticks

__all__ = ["budgets"]

ACROSS, GUTTER, LABELS, NAME, FOOT = 3, 0.3, 0.36, 0.52, 0.5  # panels side by side; inches
BARS = 0.3  # share of a panel that its bars take
SCALE = 0.62  # inches for the scale of colours


def budgets(
    histories: Mapping[str, History], *, after: int | None = None, title: str = "Rows that each head holds"
) -> Figure:
    """A map for each policy, layers down and heads across, with the mean of each layer beside it.

    Args:
        histories: by the name of the policy.
        after: when so many tokens were seen; None: at the end.
        title: of the picture.

    Raises:
        PlotError: if there is no history, or if so many tokens were never seen.
    """
    if not histories:
        raise PlotError("budgets({}): there is nothing to draw. Hint: budgets({'h2o': watch.history(cache.report())}).")
    held = {name: history.rows(after=after) for name, history in histories.items()}
    across = 2 if len(held) == 4 else min(len(held), ACROSS)
    wide = (WIDTH - 2 * EDGE - across * LABELS - (across - 1) * GUTTER) / across
    lines = ceil(len(held) / across)
    layers = max(len(rows) for rows in held.values())
    tall = min(max(0.2 * layers, 1.3), 4.8 if lines == 1 else 3.2)
    line = NAME + tall + FOOT
    page = Page(WIDTH, HEAD + lines * line + SCALE)
    seen = sorted({history.moment(after) for history in histories.values()})
    tokens = f"{seen[0]}" if len(seen) == 1 else f"{seen[0]} to {seen[-1]}"
    page.head(title, f"of {tokens} tokens seen; on the right the mean of each layer, dashed the mean of all")
    norm = _scale(held.values())
    size = page.size_for(held, 10.5, wide, weight="bold")
    image: Any = None
    for place, (name, rows) in enumerate(held.items()):
        left = EDGE + LABELS + place % across * (LABELS + wide + GUTTER)
        top = HEAD + place // across * line
        page.text(left, top + 0.2, name, size=size, weight="bold")
        page.text(left, top + 0.41, f"mean {number(float(np.nanmean(rows)))} rows", size=9, color=FAINT)
        axes = page.chart(left, top + NAME, wide * (1 - BARS) - 0.08, tall)
        image = _heat(axes, rows, norm)
        if histories[name].prompt is None:
            axes.set_xticks([])
            axes.set_xlabel("all heads alike")
        _bars(page.chart(left + wide * (1 - BARS), top + NAME, wide * BARS, tall), rows, norm)
    top = page.height - SCALE + 0.06
    scale = page.chart(EDGE + LABELS, top, 2.4, 0.12)
    bar = page.figure.colorbar(image, cax=scale, orientation="horizontal")
    bar.outline.set_visible(False)
    scale.tick_params(length=0, labelsize=8.5, colors=FAINT)
    page.text(EDGE + LABELS + 2.55, top + 0.11, "rows", size=9, color=FAINT)
    return page.figure


def _scale(held: Collection[Floats]) -> Normalize:
    """From the fewest rows to the most and as much below, or a quarter of the most: few rows less look like few."""
    most = max(float(np.nanmax(rows)) for rows in held)
    least = min(float(np.nanmin(rows)) for rows in held)
    return Normalize(max(0.0, least - max(most - least, most / 4)), max(most, 1.0))


def _heat(axes: Any, rows: Floats, norm: Normalize) -> Any:
    """Rows of each head, with numbers where there is room for them."""
    layers, heads = rows.shape
    image = axes.imshow(rows, aspect="auto", cmap=ROWS, norm=norm, interpolation="nearest")
    axes.set_xticks(*ticks(heads))
    axes.set_yticks(*ticks(layers))
    axes.set_xlabel("head")
    axes.set_ylabel("layer", labelpad=2)
    separate(axes, columns=heads, rows=layers, linewidth=1.0 if max(layers, heads) <= 40 else 0.4)
    width, height = (72 * length for length in _inches(axes))
    size = min(8.5, width / heads / 2.4, height / layers / 1.5)
    if size >= 6.0:
        for (layer, head), value in np.ndenumerate(rows):
            if np.isfinite(value):
                colour = BACKGROUND if norm(value) > 0.55 else INK
                axes.text(head, layer, f"{value:.0f}", color=colour, fontsize=size, ha="center", va="center_baseline")
    return image


def _bars(axes: Any, rows: Floats, norm: Normalize) -> None:
    """The mean of each layer, and that of all."""
    means = np.nanmean(rows, axis=1)
    axes.barh(range(len(means)), means, height=0.72, color=KEPT)
    axes.axvline(float(np.nanmean(rows)), color=INK, linewidth=1, linestyle=(0, (3, 2)))
    axes.axvline(0, color=RULE, linewidth=1)
    axes.set_xlim(0, norm.vmax)
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])


def _inches(axes: Any) -> tuple[float, float]:
    place, (width, height) = axes.get_position(), axes.figure.get_size_inches()
    return float(place.width * width), float(place.height * height)
