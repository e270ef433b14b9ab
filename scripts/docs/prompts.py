"""A prompt with a picture in it, drawn token by token: words before, patches, words after."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from kvpolicy_hf.plots import Layout

__all__ = ["Drawn", "legend", "side_by_side"]

SIDE, WORD, GAP = 12.0, 9.0, 1.0  # of a patch, height of a word, between two


@dataclass(frozen=True)
class Drawn:
    """The tokens of a prompt, where each lies in the drawing.

    Attributes:
        layout: where the patches are in the prompt.
        image: uint8 [height, width, 3], what the model saw.
    """

    layout: Layout
    image: np.ndarray[Any, Any]

    def plain(self, title: str) -> str:
        """The prompt as it came."""
        left, top, _, _ = self._place(self.layout.first)
        wide, tall = self.layout.columns * SIDE - GAP, self.layout.rows * SIDE - GAP
        shown = f'<image href="{_data(self.image)}" x="{left}" y="{top}" width="{wide}" height="{tall}"/>'
        return self._panel(title, [shown, *self._words(["kv-kept"] * self.layout.tokens)])

    def scores(self, title: str, scores: Sequence[float]) -> str:
        """The stronger its colour, the higher the score of a token."""
        shade = np.asarray(scores, dtype=float)
        shade = np.sqrt((shade - shade.min()) / max(float(np.ptp(shade)), 1e-12))
        looks = ["kv-kept" if one > 0.5 else "kv-told" for one in shade]  # of the words, to be read on it
        cells = [self._cell(token, "kv-score", f' style="fill-opacity:{shade[token]:.2f}"') for token in self._tokens]
        return self._panel(title, [*cells, *self._words(looks, cells=False)])

    def fates(self, title: str, holder: Sequence[int], *, lines: bool = True) -> str:
        """What became of the tokens: ``holder`` names the one whose row holds each, itself if it stayed, or -1."""
        looks = [_look(token, into) for token, into in enumerate(holder)]
        cells = [self._cell(token, looks[token]) for token in self.layout.patches]
        joined = [self._line(token, into) for token, into in enumerate(holder) if lines and into not in (-1, token)]
        return self._panel(title, [*cells, *self._words(looks), *joined])

    @property
    def _tokens(self) -> range:
        return range(self.layout.tokens)

    def _panel(self, title: str, parts: Sequence[str]) -> str:
        places = [self._place(token) for token in self._tokens]
        wide = self.layout.columns * SIDE - GAP
        tall = max(top + height for _, top, _, height in places)
        view = f'viewBox="-1 -1 {wide + 2} {tall + 2}" role="img" aria-label="{escape(title)}"'
        drawn = f"<svg {view}>{''.join(parts)}</svg>"
        return f'<div class="kv-panel"><p>{escape(title)}</p>{drawn}</div>'

    def _place(self, token: int) -> tuple[float, float, float, float]:
        """Left, top, width and height."""
        patches, columns = self.layout.patches, self.layout.columns
        before = sum(number < patches[0] for number, _ in self.layout.words)
        top = (WORD + GAP) * bool(before)
        if token in patches:
            row, column = divmod(token - patches[0], columns)
            return column * SIDE, top + row * SIDE, SIDE - GAP, SIDE - GAP
        after = token >= patches[-1]
        number, many = (token - patches[-1] - 1, len(self.layout.words) - before) if after else (token, before)
        wide = columns * SIDE / many
        return number * wide, (top + self.layout.rows * SIDE) * after, wide - GAP, WORD

    def _cell(self, token: int, look: str, more: str = "") -> str:
        left, top, wide, tall = self._place(token)
        return f'<rect class="{look}" x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{tall:.1f}"{more}/>'

    def _words(self, looks: Sequence[str], *, cells: bool = True) -> list[str]:
        parts = []
        for token, word in self.layout.words:
            left, top, wide, tall = self._place(token)
            size = min(5.0, 1.55 * wide / max(len(word), 1))
            parts.append(self._cell(token, looks[token]) if cells else "")
            parts.append(
                f'<text class="{looks[token]}" x="{left + wide / 2:.1f}" y="{top + tall / 2 + size / 3:.1f}" '
                f'font-size="{size:.1f}">{escape(word)}</text>'
            )
        return parts

    def _line(self, token: int, into: int) -> str:
        ends = [(left + wide / 2, top + tall / 2) for left, top, wide, tall in map(self._place, (token, into))]
        return '<path class="kv-into" d="M{0[0]:.1f} {0[1]:.1f}L{1[0]:.1f} {1[1]:.1f}"/>'.format(*ends)


def side_by_side(*panels: str) -> str:
    """As many beside each other as the screen has room for."""
    return f'<div class="kv-panels">{"".join(panels)}</div>'


def legend(**names: str) -> str:
    """What the colours of `Drawn.fates` mean: kept, merged, gone."""
    return '<p class="kv-legend">{}</p>'.format(
        "".join(f'<span class="kv-{look}">{escape(name)}</span>' for look, name in names.items())
    )


def _look(token: int, into: int) -> str:
    if into == token:
        return "kv-kept"
    return "kv-merged" if into >= 0 else "kv-gone"


def _data(image: np.ndarray[Any, Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
