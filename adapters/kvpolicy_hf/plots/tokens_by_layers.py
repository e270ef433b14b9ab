"""The picture of a cache: which token every layer still has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .colours import FAINT, mixed
from .history import History
from .legend import TOKENS, of_tokens
from .page import EDGE, HEAD, WIDTH, Page, separate
from .token_axis import MARKS, TokenAxis
from .words import moment, number

__all__ = ["tokens_by_layers"]

LABELS, ROWS, GAP = 0.38, 0.45, 0.1  # inches left, right and above the legend


def tokens_by_layers(
    history: History,
    words: Sequence[str] | None = None,
    *,
    after: int | None = None,
    title: str = "What became of each token",
) -> Figure:
    """A map, tokens across and layers down: in how many heads a token is kept, merged into another or dropped.

    Args:
        history: what became of the tokens.
        words: the text of each token, padding left out. They are written below for up to some 45 tokens of text, and
            left out if there are more. Further ones are ignored: `generate` returns one more than the cache has seen.
        after: when so many tokens were seen; None: at the end.
        title: of the picture, such as the policy's name.

    Raises:
        PlotError: if there are fewer words than tokens, or if so many tokens were never seen.
    """
    end = history.moment(after)
    fates = [history.fate(layer, after=end) for layer in range(history.layers)]
    kept, merged = (np.stack([getattr(fate, name) for fate in fates]) for name in ("kept", "merged"))
    left, top, wide = EDGE + LABELS, HEAD + MARKS, WIDTH - 2 * EDGE - LABELS - ROWS
    tokens = TokenAxis.of(history, end, left, wide, words)
    tall = history.layers * min(max(3.0 / history.layers, 0.13), 0.36)
    page = Page(WIDTH, top + tall + tokens.below + GAP + TOKENS + EDGE)
    page.head(title, f"{moment(history, end)}: {end} tokens in {_layers(history)}")
    axes = page.chart(left, top, wide, tall)
    axes.imshow(
        mixed(tokens.columns(kept), tokens.columns(merged)),
        extent=(-0.5, end - 0.5, history.layers - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    tokens.draw(page, axes, top, tall)
    row = tall / history.layers
    font = min(8.5, 0.8 * 72 * row)
    axes.set_yticks(range(history.layers), [str(layer + 1) for layer in range(history.layers)], fontsize=font)
    axes.set_ylabel("layer")
    separate(axes, rows=history.layers, linewidth=min(2.0, 0.1 * 72 * row))
    page.text(left + wide + 0.08, top - 0.08, "rows", size=8.5, color=FAINT)
    for layer, fate in enumerate(fates):
        middle = top + (layer + 0.5) * row + 0.37 * font / 72
        page.text(left + wide + 0.08, middle, number(fate.own.sum(axis=1).mean()), size=font)
    of_tokens(page, left, page.height - EDGE - TOKENS, fates, image=bool(history.segments[:end].any()))
    return page.figure


def _layers(history: History) -> str:
    layers, heads = history.layers, sorted(set(history.heads))
    text = f"{layers} layer{'s'[: layers > 1]}"
    if history.prompt is None:  # nobody told how many heads there are
        return text
    return f"{text} of {' to '.join(str(count) for count in (heads[0], *heads[1:][-1:]))} head{'s'[: heads[-1] > 1]}"
