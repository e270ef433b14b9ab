"""What the charts share: paper, ink, colours, and figures measured in inches from the top left corner."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, final

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = [
    "BACKGROUND",
    "BETTER",
    "COLOURS",
    "EDGE",
    "FAINT",
    "GREY",
    "INK",
    "MARKERS",
    "RULE",
    "WIDTH",
    "WORSE",
    "Page",
    "png",
]

BACKGROUND, INK, FAINT, RULE, GREY = "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#b3bbc4"
# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow, which is pale on white.
COLOURS: Sequence[str] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
BETTER, WORSE = COLOURS[0], COLOURS[1]
MARKERS = "osD^v<"
WIDTH = 12.0  # inches; at 100 dots an inch 1200 pixels
EDGE = 0.25
SHARP = 150  # dots an inch of a PNG
PIXELS = 30_000  # the most that a side of a PNG may have


@final
class Page:
    """A figure with a title, `WIDTH` inches wide, measured from its top left corner."""

    def __init__(self, height: float, title: str, subtitle: str) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), facecolor=BACKGROUND)
        FigureCanvasAgg(self.figure)
        self.text(EDGE, 0.38, title, size=15, weight="bold")
        self.text(EDGE, 0.64, subtitle, size=10, color=FAINT)

    def text(self, left: float, top: float, text: str, *, size: float, color: str = INK, **more: Any) -> Any:
        """Words on a baseline."""
        where = left / WIDTH, 1 - top / self.height
        return self.figure.text(*where, text, fontsize=size, color=color, parse_math=False, **more)

    def key(self, handles: Sequence[Artist]) -> None:
        """What lines and marks mean, side by side below the subtitle."""
        self.figure.legend(
            handles=list(handles),
            loc="upper left",
            bbox_to_anchor=(EDGE / WIDTH, 1 - 0.7 / self.height),
            ncols=len(handles),
            frameon=False,
            fontsize=9.5,
            labelcolor=FAINT,
            borderpad=0,
            borderaxespad=0.2,
            handlelength=2.2,
        )

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes without ticks or a frame."""
        bottom = 1 - (top + height) / self.height
        made: Any = self.figure.add_axes((left / WIDTH, bottom, width / WIDTH, height / self.height))
        made.set_facecolor(BACKGROUND)
        made.tick_params(length=0, labelsize=9, colors=FAINT)
        for spine in made.spines.values():
            spine.set_visible(False)
        return made


def png(figure: Figure) -> bytes:
    """The figure as a PNG on white, in 256 colours, which makes it a third as large."""
    drawn, small = io.BytesIO(), io.BytesIO()
    dots = min(SHARP, PIXELS / max(figure.get_size_inches()))
    figure.savefig(drawn, dpi=dots, facecolor=BACKGROUND, format="png")
    with Image.open(drawn) as image:
        few: Any = image.convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
    palette, paper = few.getpalette(), few.getpixel((0, 0))
    palette[3 * paper : 3 * paper + 3] = [255] * 3  # the mean of what is nearly white is not white
    few.putpalette(palette)
    few.save(small, "png")
    return small.getvalue()
