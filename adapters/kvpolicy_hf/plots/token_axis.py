"""The axis of tokens that the maps share: words or numbers below, and above what is image and what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from kvpolicy import AUDIO, IMAGE, TEXT, VIDEO

from .colours import FAINT, IMAGE_MARK, INK
from .errors import PlotError
from .history import Floats, History
from .page import Page, separate
from .words import ticks

__all__ = ["MARKS", "TokenAxis"]

MOST = 1000  # columns: with more tokens, a column is the mean of several
MARKS, LEADER = 0.3, 0.24  # inches above a map for the marks, and of lines to words below that stand aside
FONT, APART = 8.5, 9.5  # points: of a word, and from one to the next
LONGEST = 14  # characters of a word
GRID = 4.0  # points: columns as wide as this are drawn apart
KINDS = {IMAGE: "image", VIDEO: "video", AUDIO: "audio"}


@dataclass(frozen=True, slots=True)
class TokenAxis:
    """The tokens from left to right.

    Attributes:
        history: of these tokens.
        end: how many.
        left: inches.
        width: inches.
        words: what is written below: the token, its place, the text.
    """

    history: History
    end: int
    left: float
    width: float
    words: tuple[tuple[int, float, str], ...]

    @classmethod
    def of(cls, history: History, end: int, left: float, width: float, words: Sequence[str] | None) -> TokenAxis:
        """With the words of the text tokens, if there are any and they have room.

        Raises:
            PlotError: if there are fewer words than tokens.
        """
        if words is None:
            return cls(history, end, left, width, ())
        if len(words) < end:
            raise PlotError(
                f"words holds {len(words)} texts, and {end} tokens were seen. Hint: one for each token of the prompt, "
                f"without padding, and of the answer; the last new token is never fed back and may be there."
            )
        text = np.flatnonzero(history.segments[:end] == TEXT).tolist()
        if not text or len(text) * APART > 72 * width:
            return cls(history, end, left, width, ())
        apart = APART / 72 * end / width  # in tokens
        places = _apart(np.array(text), apart, low=(apart - 1) / 2, high=end - (apart + 1) / 2).tolist()
        spelled = tuple((n, place, _short(words[n])) for n, place in zip(text, places, strict=True))
        return cls(history, end, left, width, spelled)

    @property
    def group(self) -> int:
        """Tokens of a column."""
        return -(-self.end // MOST)

    @property
    def below(self) -> float:
        """Inches below the map that the labels take."""
        longest = max((len(word) for _, _, word in self.words), default=0)
        return 0.15 + self.leader + longest * 0.65 * FONT / 72 if self.words else 0.55

    @property
    def leader(self) -> float:
        """Inches of the lines to the words."""
        return LEADER if any(abs(token - place) > 0.5 for token, place, _ in self.words) else LEADER / 2

    def columns(self, shares: Floats) -> Floats:
        """Shares [..., T] of tokens as shares of columns."""
        starts = np.arange(0, self.end, self.group)
        sizes = np.diff([*starts, self.end])
        return np.asarray(np.add.reduceat(shares, starts, axis=-1) / sizes)

    def draw(self, page: Page, axes: Any, top: float, tall: float) -> None:
        """Numbers or words below a map, whose x runs from -0.5 to T - 0.5, and marks above it.

        Args:
            page: the picture.
            axes: the map.
            top: its upper edge, in inches.
            tall: inches.
        """
        axes.set_xlim(-0.5, self.end - 0.5)
        if 72 * self.width / self.end >= GRID:
            separate(axes, columns=self.end, linewidth=0.5)
        if self.words:
            axes.set_xticks([])
            self._spell(self._strip(page, top + tall, self.below))
        else:
            axes.set_xticks(*ticks(self.end, 10))
            axes.set_xlabel("token" if self.group == 1 else f"token (a column is the mean of {self.group})")
        self._mark(self._strip(page, top - MARKS, MARKS))

    def _strip(self, page: Page, top: float, height: float) -> Any:
        """Axes with the map's x; y downwards in inches."""
        axes = page.chart(self.left, top, self.width, height)
        axes.set_axis_off()
        axes.set_xlim(-0.5, self.end - 0.5)
        axes.set_ylim(height, 0)
        return axes

    def _spell(self, axes: Any) -> None:
        """The words, as near to their tokens as they have room, with lines to them."""
        end = self.leader
        lines = [
            [(token, 0.02), (token, 0.05), (place, end - 0.06), (place, end - 0.03)] for token, place, _ in self.words
        ]
        axes.add_collection(LineCollection(lines, colors=FAINT, linewidths=0.6))
        for _, place, word in self.words:
            axes.text(place, end, word, color=INK, fontsize=FONT, rotation=90, ha="center", va="top", parse_math=False)

    def _mark(self, axes: Any) -> None:
        """Bars for images and new tokens, with their names where there is room."""
        inch = self.end / self.width
        for name, colour, start, stop in self._spans():
            axes.add_patch(Rectangle((start - 0.5, MARKS - 0.085), stop - start, 0.035, facecolor=colour, linewidth=0))
            wide = 0.07 * len(name) * inch
            if wide <= stop - start or stop == self.end:
                at, align = (self.end - 0.5, "right") if wide > stop - start else ((start + stop - 1) / 2, "center")
                axes.text(at, MARKS - 0.14, name, color=colour, fontsize=8.5, ha=align, va="baseline")

    def _spans(self) -> Iterator[tuple[str, str, int, int]]:
        """Name, colour, start and stop of what is marked."""
        start = 0
        for kind, run in groupby(self.history.segments[: self.end].tolist()):
            stop = start + len(list(run))
            if kind != TEXT:
                yield KINDS.get(kind, "other"), IMAGE_MARK, start, stop
            start = stop
        if self.history.prompt is not None and self.history.prompt < self.end:
            yield "new", FAINT, self.history.prompt, self.end


def _apart(wanted: Floats, least: float, *, low: float, high: float) -> Floats:
    """Places in order, ``least`` apart and within the limits, as near to the wanted ones as can be (least squares)."""
    steps = least * np.arange(len(wanted))
    runs: list[tuple[float, int]] = []  # mean and length of runs of places that touch
    for value in (wanted - steps).tolist():
        mean, length = value, 1
        while runs and runs[-1][0] > mean:
            before, many = runs.pop()
            mean, length = (before * many + mean * length) / (many + length), many + length
        runs.append((mean, length))
    free = np.repeat([mean for mean, _ in runs], [length for _, length in runs])
    return np.asarray(np.clip(free, low, high - steps[-1]) + steps)


def _short(word: str) -> str:
    line = " ".join(word.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
