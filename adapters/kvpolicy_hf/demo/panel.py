"""One panel of the picture: an image with each patch kept, merged or dropped, and the text tokens above and below it.

A patch that stays is clear, with a bright outline (none where everything stays). A patch that was merged is tinted in
the colour of the row that it went into, with a line to it. A patch that was dropped is dark. Where heads differ,
brightness is the share of heads that keep the patch, and lines are head 0's.
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from PIL import Image

from .fates import Fate
from .layout import Layout

__all__ = ["BACKGROUND", "MARGIN", "OUTLINE", "draw_panel", "hues"]

BACKGROUND, OUTLINE = "#0d1117", "#ffffff"
STRIP, GAP = 0.1, 0.03
MARGIN = STRIP + GAP  # a strip of text tokens and its distance from the image, in widths of the image
MOST_WORDS = 8  # with more text tokens than this on one side, a strip shows no words
DARK = 0.2  # brightness of a dropped patch

Colour = tuple[float, float, float]


def hues(count: int) -> list[Colour]:
    """Colours that are easy to tell apart, neighbours most of all."""
    return [colorsys.hsv_to_rgb((0.11 + 0.381966 * number) % 1.0, 0.72, 1.0) for number in range(count)]


def draw_panel(axes: Any, image: np.ndarray[Any, Any], layout: Layout, fate: Fate, *, points: float) -> None:
    """Draw on axes that are one image width wide.

    Args:
        axes: x from 0 to 1, y downwards from 0, in image widths.
        image: uint8 [height, width, 3].
        layout: where the tokens lie.
        fate: what became of each.
        points: width of the panel in points, for fonts and lines.
    """
    anchors = sorted({int(token) for token in fate.into if token >= 0})
    colours = dict(zip(anchors, hues(len(anchors)), strict=True))
    cell = 1 / layout.columns
    height = layout.rows * cell
    axes.imshow(
        _shade(image, layout, fate, colours),
        extent=(0, 1, MARGIN + height, MARGIN),
        interpolation="lanczos",
        aspect="auto",
        zorder=1,
    )
    boxes = {
        token: (index % layout.columns * cell, MARGIN + index // layout.columns * cell, cell, cell)
        for index, token in enumerate(layout.patches)
    }
    before = [entry for entry in layout.words if entry[0] < layout.first]
    after = [entry for entry in layout.words if entry[0] > layout.first]
    for words, top in ((before, 0.0), (after, MARGIN + height + GAP)):
        boxes |= _strip(axes, words, top, fate, colours, points)
    if not all(fate.kept == 1):
        _outline(axes, boxes, layout, fate, colours, points)
    _lines(axes, boxes, layout, fate, colours, points)


def _shade(image: np.ndarray[Any, Any], layout: Layout, fate: Fate, colours: dict[int, Colour]) -> np.ndarray[Any, Any]:
    """The image with its patches darkened and tinted, float [height, width, 3] in 0..1."""
    per_patch = max(4, 512 // layout.columns)
    size = (layout.columns * per_patch, layout.rows * per_patch)
    clear = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / 255
    grey = clear.mean(axis=-1, keepdims=True)

    def spread(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        grid = values.reshape(layout.rows, layout.columns, -1)
        return grid.repeat(per_patch, axis=0).repeat(per_patch, axis=1)

    patches = np.asarray(layout.patches)
    tint = np.array([colours.get(int(fate.into[token]), (0.0, 0.0, 0.0)) for token in patches])
    merged = spread((fate.into[patches] >= 0).astype(np.float64))
    lost = (1 - merged) * DARK * (0.5 * clear + 0.5 * grey) + merged * spread(tint) * (0.08 + 0.5 * grey)
    kept = spread(fate.kept[patches])
    shaded: np.ndarray[Any, Any] = kept * clear + (1 - kept) * lost
    return shaded


def _strip(
    axes: Any, words: list[tuple[int, str]], top: float, fate: Fate, colours: dict[int, Colour], points: float
) -> dict[int, tuple[float, float, float, float]]:
    """Draw text tokens side by side; returns their boxes."""
    spelled = len(words) <= MOST_WORDS
    shares = np.array([len(word) + 1.6 if spelled else 1.0 for _, word in words])
    edges = np.concatenate([[0.0], np.cumsum(shares) / max(shares.sum(), 1e-9)])
    inset = 0.006 if spelled else 0.0
    boxes = {}
    for (token, word), left, right in zip(words, edges[:-1], edges[1:], strict=True):
        box = (float(left) + inset, top, float(right - left) - 2 * inset, STRIP)
        kept, into = float(fate.kept[token]), int(fate.into[token])
        lost = np.array(colours[into]) * 0.38 if into >= 0 else np.full(3, 0.085)
        face = kept * np.array([0.24, 0.27, 0.31]) + (1 - kept) * lost
        axes.add_patch(Rectangle(box[:2], box[2], box[3], facecolor=tuple(face), linewidth=0, zorder=2))
        boxes[token] = box
        if spelled:
            axes.text(
                box[0] + box[2] / 2,
                top + STRIP / 2,
                word,
                color=str(max(0.36 + 0.6 * kept, 0.7 if into >= 0 else 0.0)),
                fontsize=min(points * 0.047, points * 1.5 / shares.sum()),
                ha="center",
                va="center_baseline",
                zorder=7,
            )
    return boxes


def _outline(
    axes: Any,
    boxes: dict[int, tuple[float, float, float, float]],
    layout: Layout,
    fate: Fate,
    colours: dict[int, Colour],
    points: float,
) -> None:
    """A thin bright frame around every token that stays, in its own colour where others went into it."""
    line = min(1.1, points / layout.columns * 0.08)
    inset = line / 2 / points
    for token, (left, top, width, height) in boxes.items():
        if fate.kept[token] > 0:
            axes.add_patch(
                Rectangle(
                    (left + inset, top + inset),
                    width - 2 * inset,
                    height - 2 * inset,
                    fill=False,
                    edgecolor=colours.get(token, OUTLINE),
                    alpha=float(fate.kept[token]),
                    linewidth=line,
                    joinstyle="miter",
                    zorder=3,
                )
            )


def _lines(
    axes: Any,
    boxes: dict[int, tuple[float, float, float, float]],
    layout: Layout,
    fate: Fate,
    colours: dict[int, Colour],
    points: float,
) -> None:
    """A thin line from every merged patch to the token that it went into; a patch gets a dot there."""
    centre = {token: (left + width / 2, top + height / 2) for token, (left, top, width, height) in boxes.items()}
    merged = [(token, int(fate.into[token])) for token in layout.patches if fate.into[token] >= 0]
    crowd = min(1.0, (100 / max(len(merged), 1)) ** 0.5)
    axes.add_collection(
        LineCollection(
            [(centre[token], centre[anchor]) for token, anchor in merged],
            colors=[colours[anchor] for _, anchor in merged],
            linewidths=max(0.35, points / 190 * crowd),
            alpha=0.7 * crowd,
            zorder=5,
        )
    )
    for anchor in {anchor for _, anchor in merged} & set(layout.patches):  # on a word it would hide it
        axes.plot(*centre[anchor], "o", color=colours[anchor], markersize=points / 50 * crowd, zorder=6)
