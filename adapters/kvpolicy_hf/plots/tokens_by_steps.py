"""The picture of a generation: which token one layer has at every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .colours import BACKGROUND, mixed
from .errors import PlotError
from .history import Fate, History
from .legend import TOKENS, of_tokens
from .page import EDGE, HEAD, WIDTH, Page
from .token_axis import MARKS, TokenAxis

__all__ = ["tokens_by_steps"]

LABELS, GAP = 0.42, 0.1  # inches left and above the legend


def tokens_by_steps(
    history: History,
    words: Sequence[str] | None = None,
    *,
    layer: int = 0,
    title: str = "Which tokens are there at every step",
) -> Figure:
    """A map of one layer, tokens across and steps down: each line is the table that the next token will see.

    Args:
        history: what became of the tokens.
        words: the text of each token, as for `tokens_by_layers`.
        layer: which.
        title: of the picture, such as the policy's name.

    Raises:
        PlotError: if there are fewer words than tokens, if there is no such layer, or if no plan was ever made: then
            the history does not know where the prompt ends.
    """
    number = history.number(layer)
    if history.prompt is None:
        raise PlotError(
            f"no plan was made while {history.tokens} tokens were seen: every token stays from the step on at which it "
            f"comes, and there is no step to show. Hint: tokens_by_layers, or a policy that acts."
        )
    end, begin = history.tokens, history.prompt
    fates = _fates(history, number)
    kept, merged = (np.stack([getattr(fate, name) for fate in fates]) for name in ("kept", "merged"))
    arrived = (np.arange(end) < begin + np.arange(len(fates))[:, None]).astype(np.float64)
    left, top, wide = EDGE + LABELS, HEAD + MARKS, WIDTH - 2 * EDGE - LABELS
    tokens = TokenAxis.of(history, end, left, wide, words)
    tall = len(kept) * min(max(2.6 / len(kept), 4.0 / 1000), 0.22)
    page = Page(WIDTH, top + tall + tokens.below + GAP + TOKENS + EDGE)
    new = end - begin
    page.head(title, f"layer {number + 1}: after the prompt of {begin} tokens, and after each of {new} new ones")
    axes = page.chart(left, top, wide, tall)
    colours = mixed(tokens.columns(kept * arrived), tokens.columns(merged * arrived))
    there = tokens.columns(arrived)[..., None]
    axes.imshow(
        there * colours + (1 - there) * np.array(to_rgb(BACKGROUND)),
        extent=(-0.5, end - 0.5, new + 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    tokens.draw(page, axes, top, tall)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_ylabel("new tokens")
    of_tokens(page, left, page.height - EDGE - TOKENS, fates, image=bool(history.segments.any()))
    return page.figure


def _fates(history: History, layer: int) -> list[Fate]:
    """The layer's tokens after the prompt and after each token more; what is yet to come counts as kept."""
    begin, end = history.prompt or 0, history.tokens
    holder = Fate.everything(end, history.heads[layer]).holder
    coming = iter([*history.changes[layer], None])
    change = next(coming)
    fates = []
    for seen in range(begin, end + 1):
        while change is not None and change.seen <= seen:
            change.apply(holder)
            change = next(coming)
        fates.append(Fate(np.maximum(holder, -1)))
    return fates
