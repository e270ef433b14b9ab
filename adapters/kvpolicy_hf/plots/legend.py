"""What the colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from .colours import DROPPED, FAINT, IMAGE_MARK, INK, OUTLINE, hues, mixed
from .history import Fate
from .page import Page

__all__ = ["TOKENS", "of_panels", "of_tokens"]

TOKENS = 0.36  # inches of the legend of tokens


def of_panels(axes: Any, width: float, fates: Sequence[Fate]) -> float:
    """The legend of panels, a line below the other; returns its height in units of the axes.

    Args:
        axes: as those of a panel.
        width: theirs, in inches.
        fates: what the panels show.
    """
    size, tint = 0.085, hues(1)[0]
    entries: list[tuple[str, Any, Any, float]] = [("kept", "#57606a", OUTLINE, 1.4)]
    if any(fate.differs for fate in fates):
        entries.append(("kept by some of the heads", "#363c43", (1, 1, 1, 0.5), 1.4))
    if any(fate.merged.any() for fate in fates):
        entries.append(("merged into the row of its colour", (*tint, 0.55), tint, 0.6))
    entries.append(("dropped", "#1c2128", "#30363d", 0.6))
    for number, (entry, face, edge, line) in enumerate(entries):
        top = 0.01 + number * 0.12
        axes.add_patch(Rectangle((0.005, top), size, size, facecolor=face, edgecolor=edge, linewidth=line))
        font = min(9.5, 3.8 * width)
        axes.text(size + 0.05, top + size / 2, entry, color=INK, fontsize=font, va="center_baseline")
    return 0.12 * len(entries)


def of_tokens(page: Page, left: float, top: float, fates: Sequence[Fate], *, image: bool) -> None:
    """The legend of a map of tokens: a line, and another one where heads differ.

    Args:
        page: the picture.
        left: inches.
        top: inches; `TOKENS` more are taken.
        fates: what the map shows.
        image: whether it marks an image.
    """
    width = page.width - left
    axes = page.axes(left, top, width, TOKENS)
    differ = any(fate.differs for fate in fates)
    shares = np.linspace(0.15, 1, 4)[None] if differ else np.ones((1, 1))
    entries = [("kept", mixed(shares, 0 * shares))]
    if any(fate.merged.any() for fate in fates):
        entries.append(("merged into another row", mixed(0 * shares, shares)))
    entries.append(("dropped", np.array([[to_rgb(DROPPED)]])))
    if image:
        entries.append(("image", np.array([[to_rgb(IMAGE_MARK)]])))
    size, at = 0.15 / width, 0.0
    for text, colours in entries:
        wide = size * colours.shape[1]
        axes.imshow(colours, extent=(at, at + wide, size, 0), aspect="auto", interpolation="nearest")
        at += wide + 0.07 / width
        made = axes.text(at, size / 2, text, color=INK, fontsize=9, va="center_baseline")
        at += (page.width_of(made) + 0.25) / width
    if differ:
        axes.text(0, 0.33 / width, "from dark to bright: in none to all of the heads", color=FAINT, fontsize=8.5)
    axes.set_xlim(0, 1)
    axes.set_ylim(TOKENS / width, 0)
