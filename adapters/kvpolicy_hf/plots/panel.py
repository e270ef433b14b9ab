"""One panel: an image with each patch kept, merged or dropped, and the text tokens above and below it.

A patch that stays is clear, with a bright outline (none where everything stays). A patch that was merged is tinted in
the colour of the row that it went into, with a line to it. A patch that was dropped is dark. Where heads differ,
brightness is the share of heads that keep the patch, and tint and line are those of most heads that merge it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from PIL import Image

from .colours import OUTLINE, Colour, hues
from .history import Fate, Floats, Ints
from .layout import Layout

__all__ = ["MARGIN", "draw_panel"]

STRIP, GAP = 0.1, 0.03
MARGIN = STRIP + GAP  # a strip of text tokens and its distance from the image, in widths of the image
MOST_WORDS = 8  # with more text tokens than this on one side, a strip shows no words
DARK = 0.2  # brightness of a dropped patch

Boxes: TypeAlias = dict[int, tuple[float, float, float, float]]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a panel shows of the tokens.

    Attributes:
        layout: where they lie.
        kept: [T], the share of heads that keep each.
        folded: [T], of the heads that do not, the share that merged it.
        into: [T], what it was merged into, or -1.
        colours: of the tokens that others were merged into.
        points: width of the panel in points.
    """

    layout: Layout
    kept: Floats
    folded: Floats
    into: Ints
    colours: Mapping[int, Colour]
    points: float

    @classmethod
    def of(cls, layout: Layout, fate: Fate, points: float) -> _Shown:
        prompt = slice(0, layout.tokens)
        kept, merged, into = fate.kept[prompt], fate.merged[prompt], fate.into[prompt]
        folded = np.divide(merged, 1 - kept, out=np.zeros_like(kept), where=merged > 0)
        anchors = np.unique(into[into >= 0]).tolist()
        return cls(layout, kept, folded, into, dict(zip(anchors, hues(len(anchors)), strict=True)), points)

    def tint(self, token: int) -> Colour:
        """The colour of what it was merged into, black for nothing."""
        return self.colours.get(int(self.into[token]), (0.0, 0.0, 0.0))


def draw_panel(axes: Any, image: np.ndarray[Any, Any], layout: Layout, fate: Fate, *, points: float) -> None:
    """Draw on axes that are one image width wide.

    Args:
        axes: x from 0 to 1, y downwards from 0, in image widths.
        image: uint8 [height, width, 3].
        layout: where the tokens lie.
        fate: what became of each; later tokens than the prompt's are not shown.
        points: width of the panel in points, for fonts and lines.
    """
    shown = _Shown.of(layout, fate, points)
    cell = 1 / layout.columns
    height = layout.rows * cell
    axes.imshow(
        _shade(image, shown),
        extent=(0, 1, MARGIN + height, MARGIN),
        interpolation="lanczos",
        aspect="auto",
        zorder=1,
    )
    boxes: Boxes = {
        token: (index % layout.columns * cell, MARGIN + index // layout.columns * cell, cell, cell)
        for index, token in enumerate(layout.patches)
    }
    before = [entry for entry in layout.words if entry[0] < layout.first]
    after = [entry for entry in layout.words if entry[0] > layout.first]
    for words, top in ((before, 0.0), (after, MARGIN + height + GAP)):
        boxes |= _strip(axes, words, top, shown)
    if not (shown.kept == 1).all():
        _outline(axes, boxes, shown)
    _lines(axes, boxes, shown)


def _shade(image: np.ndarray[Any, Any], shown: _Shown) -> Floats:
    """The image with its patches darkened and tinted, float [height, width, 3] in 0..1."""
    layout = shown.layout
    per_patch = max(4, 512 // layout.columns)
    size = (layout.columns * per_patch, layout.rows * per_patch)
    clear = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.float64) / 255
    grey = clear.mean(axis=-1, keepdims=True)

    def spread(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        grid = values.reshape(layout.rows, layout.columns, -1)
        return grid.repeat(per_patch, axis=0).repeat(per_patch, axis=1)

    patches = np.asarray(layout.patches)
    tint = np.array([shown.tint(token) for token in layout.patches])
    kept, folded = spread(shown.kept[patches]), spread(shown.folded[patches])
    lost = (1 - folded) * DARK * (0.5 * clear + 0.5 * grey) + folded * spread(tint) * (0.08 + 0.5 * grey)
    shaded: np.ndarray[Any, Any] = kept * clear + (1 - kept) * lost
    return shaded


def _strip(axes: Any, words: list[tuple[int, str]], top: float, shown: _Shown) -> Boxes:
    """Draw text tokens side by side; returns their boxes."""
    spelled = len(words) <= MOST_WORDS
    shares = np.array([len(word) + 1.6 if spelled else 1.0 for _, word in words])
    edges = np.concatenate([[0.0], np.cumsum(shares) / max(shares.sum(), 1e-9)])
    inset = 0.006 if spelled else 0.0
    boxes: Boxes = {}
    for (token, word), left, right in zip(words, edges[:-1], edges[1:], strict=True):
        box = (float(left) + inset, top, float(right - left) - 2 * inset, STRIP)
        kept, folded = float(shown.kept[token]), float(shown.folded[token])
        lost = folded * np.array(shown.tint(token)) * 0.38 + (1 - folded) * np.full(3, 0.085)
        face = kept * np.array([0.24, 0.27, 0.31]) + (1 - kept) * lost
        axes.add_patch(Rectangle(box[:2], box[2], box[3], facecolor=tuple(face), linewidth=0, zorder=2))
        boxes[token] = box
        if spelled:
            axes.text(
                box[0] + box[2] / 2,
                top + STRIP / 2,
                word,
                color=str(max(0.36 + 0.6 * kept, 0.7 if folded > 0 else 0.0)),
                fontsize=min(shown.points * 0.047, shown.points * 1.5 / shares.sum()),
                ha="center",
                va="center_baseline",
                parse_math=False,
                zorder=7,
            )
    return boxes


def _outline(axes: Any, boxes: Boxes, shown: _Shown) -> None:
    """A thin bright frame around every token that stays, in its own colour where others went into it."""
    line = min(1.1, shown.points / shown.layout.columns * 0.08)
    inset = line / 2 / shown.points
    for token, (left, top, width, height) in boxes.items():
        if shown.kept[token] > 0:
            axes.add_patch(
                Rectangle(
                    (left + inset, top + inset),
                    width - 2 * inset,
                    height - 2 * inset,
                    fill=False,
                    edgecolor=shown.colours.get(token, OUTLINE),
                    alpha=float(shown.kept[token]),
                    linewidth=line,
                    joinstyle="miter",
                    zorder=3,
                )
            )


def _lines(axes: Any, boxes: Boxes, shown: _Shown) -> None:
    """A thin line from every merged patch to the token that it went into; a patch gets a dot there."""
    centre = {token: (left + width / 2, top + height / 2) for token, (left, top, width, height) in boxes.items()}
    merged = [(token, int(shown.into[token])) for token in shown.layout.patches]
    merged = [(token, anchor) for token, anchor in merged if anchor in centre]  # a later token has no box
    crowd = min(1.0, (100 / max(len(merged), 1)) ** 0.5)
    axes.add_collection(
        LineCollection(
            [(centre[token], centre[anchor]) for token, anchor in merged],
            colors=[shown.colours[anchor] for _, anchor in merged],
            linewidths=max(0.35, shown.points / 190 * crowd),
            alpha=0.7 * crowd,
            zorder=5,
        )
    )
    for anchor in {anchor for _, anchor in merged} & set(shown.layout.patches):  # on a word it would hide it
        axes.plot(*centre[anchor], "o", color=shown.colours[anchor], markersize=shown.points / 50 * crowd, zorder=6)
