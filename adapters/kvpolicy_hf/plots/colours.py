"""The pictures' colours.

On dark ground kept is light blue, merged orange, dropped nearly black: colour-blind readers tell them apart, and so
does a reader who only sees how light they are.
"""

from __future__ import annotations

import colorsys
from typing import TypeAlias

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from .history import Floats

__all__ = [
    "BACKGROUND",
    "DROPPED",
    "FAINT",
    "IMAGE_MARK",
    "INK",
    "KEPT",
    "MERGED",
    "OUTLINE",
    "ROWS",
    "RULE",
    "Colour",
    "hues",
    "mixed",
]

Colour: TypeAlias = tuple[float, float, float]

BACKGROUND, INK, FAINT, RULE, OUTLINE = "#0d1117", "#e6edf3", "#8b949e", "#30363d", "#ffffff"
KEPT, MERGED, DROPPED, IMAGE_MARK = "#8ecdff", "#d97a06", "#21262d", "#cc79a7"
ROWS = LinearSegmentedColormap.from_list("rows", ["#161b22", "#12365c", "#2f79bd", KEPT, "#f2f9ff"])


def hues(count: int) -> list[Colour]:
    """Colours that are easy to tell apart, neighbours most of all."""
    return [colorsys.hsv_to_rgb((0.11 + 0.381966 * number) % 1.0, 0.72, 1.0) for number in range(count)]


def mixed(kept: Floats, merged: Floats) -> Floats:
    """What tokens look like that these shares [...] of the heads keep and merge, RGB [..., 3] in 0..1."""
    dropped, of_kept, of_merged = (np.array(to_rgb(colour)) for colour in (DROPPED, KEPT, MERGED))
    made = dropped + kept[..., None] * (of_kept - dropped) + merged[..., None] * (of_merged - dropped)
    return np.asarray(np.clip(made, 0.0, 1.0))
