"""A figure that is measured in inches from its top left corner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .colours import BACKGROUND, FAINT, INK

__all__ = ["EDGE", "HEAD", "WIDTH", "Page", "separate"]

WIDTH, EDGE, HEAD = 8.0, 0.3, 0.85  # inches: of a picture, of its margin, and down to below its title


class Page:
    """A figure, not pyplot's.

    Args:
        width: inches.
        height: inches.
        dpi: of the figure, and so of the file that it is saved in.
    """

    def __init__(self, width: float, height: float, *, dpi: float = 200) -> None:
        self.figure = Figure(figsize=(width, height), dpi=dpi, facecolor=BACKGROUND)
        self._canvas = FigureCanvasAgg(self.figure)
        self.width, self.height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes without a frame; both coordinates run from 0 at the top left, in units of the width."""
        axes = self.chart(left, top, width, height)
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(height / width, 0)
        return axes

    def chart(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes for data, with labels and without lines around them."""
        bottom = 1 - (top + height) / self.height
        axes: Any = self.figure.add_axes(
            (left / self.width, bottom, width / self.width, height / self.height), facecolor=BACKGROUND
        )
        axes.tick_params(length=0, labelsize=8.5, colors=FAINT, pad=4)
        axes.xaxis.label.set(color=FAINT, fontsize=9)
        axes.yaxis.label.set(color=FAINT, fontsize=9)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def head(self, title: str, subtitle: str) -> None:
        """Title and subtitle, as wide as the page at most."""
        self.text(EDGE, 0.43, title, size=14, fit=self.width - 2 * EDGE, weight="bold")
        self.text(EDGE, 0.68, subtitle, size=9.5, color=FAINT, fit=self.width - 2 * EDGE)

    def text(
        self, left: float, top: float, text: str, *, size: float, color: str = INK, fit: float = 0.0, **style: Any
    ) -> None:
        """Text whose base line is ``top`` inches below the upper edge; made smaller if it is longer than ``fit``."""
        made = self.figure.text(
            left / self.width, 1 - top / self.height, text, fontsize=size, color=color, parse_math=False, **style
        )
        if fit:
            made.set_fontsize(size * min(1.0, fit / max(self.width_of(made), 1e-9)))

    def width_of(self, text: Any) -> float:
        """Inches that a text of the figure takes."""
        return float(text.get_window_extent(self._canvas.get_renderer()).width / self.figure.dpi)

    def size_for(self, texts: Iterable[str], size: float, fit: float, **style: Any) -> float:
        """One font size for all of them: ``size``, or the one in which the longest is as long as ``fit``."""
        widths = []
        for text in texts:
            made = self.figure.text(0, 0, text, fontsize=size, parse_math=False, **style)
            widths.append(self.width_of(made))
            made.remove()
        return size * min(1.0, fit / max(widths, default=fit))


def separate(axes: Any, *, columns: int = 0, rows: int = 0, linewidth: float) -> None:
    """Draw lines between the cells of a map with so many columns and rows, whose middles are at 0, 1, ..."""
    style = {"colors": BACKGROUND, "linewidth": linewidth}
    axes.vlines(np.arange(1, columns) - 0.5, 0, 1, transform=axes.get_xaxis_transform(), **style)
    axes.hlines(np.arange(1, rows) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), **style)
