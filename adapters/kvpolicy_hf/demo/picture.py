"""Draw what each policy did to the tokens of a prompt: a row per policy, a column per layer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from ..plots.colours import FAINT, INK
from ..plots.history import Fate
from ..plots.layout import Layout
from ..plots.legend import of_panels
from ..plots.page import Page
from ..plots.panel import MARGIN, draw_panel
from ..plots.patches import spread
from .answers import Answer

__all__ = ["Row", "Subject", "draw_picture"]

GOOD, BAD = "#3fb950", "#f85149"
SIDE, LABEL, PANEL, GUTTER, EDGE, HEAD, BAR = 2.7, 1.8, 1.8, 0.2, 0.4, 1.22, 0.24  # inches


@dataclass(frozen=True, slots=True)
class Subject:
    """What the picture is about.

    Attributes:
        image: uint8 [height, width, 3], as the model saw it.
        layout: where the prompt's tokens lie.
        question: the question.
        right: the right answer; None where it is not known, and answers are compared with the full cache's.
        budget: how the budget reads in the title, such as ``"20%"``.
        asked: how many questions were asked in all.
    """

    image: np.ndarray[Any, Any]
    layout: Layout
    question: str
    right: str | None
    budget: str
    asked: int


@dataclass(frozen=True, slots=True)
class Row:
    """One policy's line of the picture.

    Attributes:
        name: the policy.
        answer: what it answered, and what it did with the prompt's tokens.
        right: whether the answer is right.
        score: how many of all the questions it answered rightly.
    """

    name: str
    answer: Answer
    right: bool
    score: int


def draw_picture(subject: Subject, rows: Sequence[Row], path: Path) -> None:
    """Write the picture as PNG; of a model with more than six layers, six spread over the model are drawn."""
    shown = spread(len(rows[0].answer.rows))
    aspect = subject.layout.rows / subject.layout.columns + 2 * MARGIN
    tall = PANEL * aspect
    matrix = EDGE + SIDE + GUTTER + LABEL  # where the panels begin
    width = matrix + len(shown) * (PANEL + GUTTER) + EDGE - GUTTER
    bars = 0.7 + BAR * len(rows) if subject.asked > 1 else 0.0
    height = HEAD + max(len(rows) * (tall + GUTTER) - GUTTER, SIDE * aspect + 2.3 + bars) + EDGE
    page = Page(width, height, dpi=150)

    page.text(EDGE, 0.54, "What a KV-cache policy keeps of an image", size=17, weight="bold")
    page.text(EDGE, 0.82, f"each policy may keep {subject.budget} of the cache", size=10.5, color=FAINT)
    _sidebar(page, subject, rows)
    for column, layer in enumerate(shown):
        middle = matrix + column * (PANEL + GUTTER) + PANEL / 2
        page.text(middle, HEAD - 0.08, f"layer {layer + 1}", size=9.5, color=FAINT, ha="center")
    for number, row in enumerate(rows):
        top = HEAD + number * (tall + GUTTER)
        _label(page, EDGE + SIDE + GUTTER, top + PANEL * MARGIN, row)
        for column, layer in enumerate(shown):
            axes = page.axes(matrix + column * (PANEL + GUTTER), top, PANEL, tall)
            draw_panel(axes, subject.image, subject.layout, row.answer.fates[layer], points=PANEL * 72)
    page.figure.savefig(path, format="png")


def _sidebar(page: Page, subject: Subject, rows: Sequence[Row]) -> None:
    """The picture as it is, the question, the right answer, the legend, and the score over all questions."""
    tall = SIDE * (subject.layout.rows / subject.layout.columns + 2 * MARGIN)
    page.text(EDGE + SIDE / 2, HEAD - 0.08, "the prompt", size=9.5, color=FAINT, ha="center")
    whole = Fate.everything(subject.layout.tokens)
    draw_panel(page.axes(EDGE, HEAD, SIDE, tall), subject.image, subject.layout, whole, points=SIDE * 72)
    top = HEAD + tall + 0.32
    for line in textwrap.wrap(subject.question, 30)[:3]:
        page.text(EDGE, top, line, size=12, weight="bold")
        top += 0.24
    if subject.right is not None:
        page.text(EDGE, top + 0.02, f"right answer: {subject.right}", size=10.5, color=GOOD)
        top += 0.24
    fates = [fate for row in rows for fate in row.answer.fates]
    top += 0.06
    top += SIDE * of_panels(page.axes(EDGE, top, SIDE, SIDE), SIDE, fates)
    if subject.asked > 1:
        _scores(page, top + 0.46, subject, rows)


def _scores(page: Page, top: float, subject: Subject, rows: Sequence[Row]) -> None:
    """A bar per policy: right answers of all the questions asked."""
    what = "right answers to" if subject.right is not None else "same answer as the full cache:"
    page.text(EDGE, top, f"{what} {subject.asked} questions", size=10.5, weight="bold")
    axes = page.axes(EDGE, top + 0.12, SIDE, BAR * len(rows))
    longest = max(len(row.name) for row in rows)
    thick, start, end = 0.035, min(max(0.46, 0.029 * longest + 0.02), 0.66), 0.84
    for number, row in enumerate(rows):
        middle = (number + 0.5) * BAR / SIDE
        size = min(9.5, 200 / len(row.name))
        axes.text(0, middle, row.name, color=INK, fontsize=size, va="center_baseline")
        for share, colour in ((1.0, "#21262d"), (row.score / subject.asked, GOOD)):
            axes.add_patch(Rectangle((start, middle - thick / 2), (end - start) * share, thick, facecolor=colour))
        score = f"{row.score}/{subject.asked}"
        axes.text(1, middle, score, color=INK, fontsize=9.5, va="center_baseline", ha="right")


def _label(page: Page, left: float, top: float, row: Row) -> None:
    """The policy's name, its answer and what its cache cost."""
    page.text(left, top + 0.18, row.name, size=min(12, 200 / len(row.name)), weight="bold")
    lines = textwrap.wrap(row.answer.text or "(nothing)", 18)[:3]
    for number, line in enumerate(lines):
        mark = ("✓ " if row.right else "✗ ") if number == 0 else "   "
        page.text(left, top + 0.48 + 0.2 * number, mark + line, size=11, color=GOOD if row.right else BAD)
    below = top + 0.6 + 0.2 * len(lines)
    kept = sum(row.answer.rows) / len(row.answer.rows)
    share = row.answer.kv_bytes / row.answer.full_kv_bytes
    page.text(left, below, f"{kept:.0f} of {row.answer.tokens} rows", size=9.5, color=FAINT)
    page.text(left, below + 0.19, f"{share:.0%} of the bytes", size=9.5, color=FAINT)
