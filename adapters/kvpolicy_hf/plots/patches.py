"""The picture of an image: which patches each layer keeps, merges and drops."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .colours import FAINT
from .errors import PlotError
from .history import Fate, History
from .layout import Layout
from .legend import of_panels
from .page import EDGE, HEAD, WIDTH, Page
from .panel import MARGIN, draw_panel
from .words import moment, number

__all__ = ["MOST_LAYERS", "patches", "spread"]

MOST_LAYERS = 6
ACROSS, GUTTER, LABEL = 3, 0.22, 0.34  # panels side by side; inches between them, and above each


def patches(
    history: History,
    layout: Layout,
    image: np.ndarray[Any, Any],
    *,
    layers: Sequence[int] | None = None,
    after: int | None = None,
    title: str = "What is left of the image",
) -> Figure:
    """The prompt, and what each layer keeps of it: a panel a layer.

    Where heads differ, brightness is the share of heads that keep a patch; tint and line are those of most heads that
    merge it.

    Args:
        history: what became of the tokens.
        layout: where the prompt's tokens lie.
        image: uint8 [height, width, 3]; `seen_by_model` gives what the model saw.
        layers: which; None: up to six, spread over the model.
        after: when so many tokens were seen; None: at the end. ``layout.tokens`` is the moment after the prompt.
        title: of the picture, such as the policy's name.

    Raises:
        PlotError: if the layout has more tokens than were seen by then, if there is no such layer, or if the image has
            another shape.
    """
    end = history.moment(after)
    if layout.tokens > end:
        raise PlotError(
            f"the layout has {layout.tokens} tokens, and {end} were seen. Hint: the layout of the same prompt and "
            f"batch row as the watch's, and after=None or at least {layout.tokens}."
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PlotError(
            f"image is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, 3]. "
            f"Hint: np.asarray(picture.convert('RGB'))."
        )
    shown = spread(history.layers) if layers is None else [history.number(layer) for layer in layers]
    fates = {layer: history.fate(layer, after=end) for layer in shown}
    panel = (WIDTH - 2 * EDGE - (ACROSS - 1) * GUTTER) / ACROSS
    tall = panel * (layout.rows / layout.columns + 2 * MARGIN)
    line = LABEL + max(tall, panel / 2) + GUTTER  # the legend takes half the width of a panel
    cells = [
        (EDGE + place % ACROSS * (panel + GUTTER), HEAD + place // ACROSS * line) for place in range(len(shown) + 2)
    ]
    page = Page(WIDTH, HEAD + ceil(len(cells) / ACROSS) * line - GUTTER + EDGE)
    page.head(title, f"{moment(history, end)}: the prompt's {layout.tokens} tokens in each layer")
    named = ["the prompt", *(f"layer {layer + 1}" for layer in shown)]
    whole = Fate.everything(layout.tokens)
    for name, fate, (left, top) in zip(named, [whole, *fates.values()], cells, strict=False):
        page.text(left, top + LABEL - 0.1, name, size=9.5)
        kept = fate.own[:, : layout.tokens].sum(axis=1).mean()
        share = f"{number(kept)} of {layout.tokens} kept" if fate is not whole else f"{layout.tokens} tokens"
        page.text(left + panel, top + LABEL - 0.1, share, size=9, color=FAINT, ha="right")
        draw_panel(page.axes(left, top + LABEL, panel, tall), image, layout, fate, points=panel * 72)
    left, top = cells[-1]
    of_panels(page.axes(left, top + LABEL, panel, panel), panel, [*fates.values()])
    return page.figure


def spread(layers: int) -> list[int]:
    """At most six layers, spread over the model."""
    shown: list[int] = np.unique(np.linspace(0, layers - 1, min(layers, MOST_LAYERS)).round().astype(int)).tolist()
    return shown
