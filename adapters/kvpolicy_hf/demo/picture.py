"""Draw what each policy did to the tokens of a prompt: a row per policy, a column per layer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .answers import Answer
from .fates import Fate
from .layout import Layout
from .panel import BACKGROUND, MARGIN, OUTLINE, draw_panel, hues

__all__ = ["Subject", "draw_picture"]

INK, FAINT, GOOD, BAD = "#e6edf3", "#8b949e", "#3fb950", "#f85149"
MOST_LAYERS = 6
SIDE, LABEL, PANEL, GUTTER, EDGE, HEAD = 2.7, 1.8, 1.8, 0.2, 0.4, 1.2  # inches


@dataclass(frozen=True, slots=True)
class Subject:
    """What the picture is about.

    Attributes:
        image: uint8 [height, width, 3], as the model saw it.
        layout: where the prompt's tokens lie.
        question: the question.
        right: the right answer; None where it is not known, and answers are compared with the full cache's.
        budget: how the budget reads in the title, such as ``"20%"``.
    """

    image: np.ndarray[Any, Any]
    layout: Layout
    question: str
    right: str | None
    budget: str


def draw_picture(
    subject: Subject, answers: Mapping[str, Answer], marks: Mapping[str, bool], layers: int, path: Path
) -> None:
    """Write the picture as PNG.

    Args:
        subject: the image, the prompt and the question.
        answers: by policy name, in the order of the rows.
        marks: by policy name, whether the answer is right.
        layers: how many layers the model has; six of them at most are drawn, spread over the model.
        path: where to write.
    """
    shown = np.unique(np.linspace(0, layers - 1, min(layers, MOST_LAYERS)).round().astype(int)).tolist()
    tall = PANEL * (subject.layout.rows / subject.layout.columns + 2 * MARGIN)
    matrix = EDGE + SIDE + GUTTER + LABEL  # where the panels begin
    width = matrix + len(shown) * (PANEL + GUTTER) + EDGE - GUTTER
    height = HEAD + max(len(answers) * (tall + GUTTER), tall * SIDE / PANEL + 2.3) + EDGE - GUTTER
    page = _Page(width, height)

    page.text(EDGE, 0.52, "What a KV-cache policy keeps of an image", size=17, weight="bold")
    page.text(EDGE, 0.80, f"each policy may keep {subject.budget} of the cache", size=10.5, color=FAINT)
    _sidebar(page, subject)
    for column, layer in enumerate(shown):
        middle = matrix + column * (PANEL + GUTTER) + PANEL / 2
        page.text(middle, HEAD - 0.08, f"layer {layer + 1}", size=9.5, color=FAINT, ha="center")
    for row, (name, answer) in enumerate(answers.items()):
        top = HEAD + row * (tall + GUTTER)
        _label(page, EDGE + SIDE + GUTTER, top + PANEL * MARGIN, name, answer, marks[name])
        for column, layer in enumerate(shown):
            fate = answer.fates.get(layer, Fate.everything(subject.layout.tokens))
            axes = page.axes(matrix + column * (PANEL + GUTTER), top, PANEL, tall)
            draw_panel(axes, subject.image, subject.layout, fate, points=PANEL * 72)
    page.figure.savefig(path, dpi=150, facecolor=BACKGROUND)


class _Page:
    """A figure measured in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), facecolor=BACKGROUND)
        FigureCanvasAgg(self.figure)
        self.width, self.height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes without a frame; both coordinates run from 0 at the top left, in units of the width."""
        bottom = 1 - (top + height) / self.height
        axes: Any = self.figure.add_axes(
            (left / self.width, bottom, width / self.width, height / self.height), facecolor=BACKGROUND
        )
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        axes.set_ylim(height / width, 0)
        return axes

    def text(self, left: float, top: float, text: str, *, size: float, color: str = INK, **style: Any) -> None:
        """Text whose base line is ``top`` inches below the upper edge."""
        self.figure.text(left / self.width, 1 - top / self.height, text, fontsize=size, color=color, **style)


def _sidebar(page: _Page, subject: Subject) -> None:
    """The picture as it is, the question, the right answer and the legend."""
    tall = SIDE * (subject.layout.rows / subject.layout.columns + 2 * MARGIN)
    page.text(EDGE + SIDE / 2, HEAD - 0.08, "the prompt", size=9.5, color=FAINT, ha="center")
    whole = Fate.everything(subject.layout.tokens)
    draw_panel(
        page.axes(EDGE, HEAD, SIDE, tall), subject.image, subject.layout, whole, points=SIDE * 72
    )
    top = HEAD + tall + 0.3
    for line in textwrap.wrap(subject.question, 32)[:3]:
        page.text(EDGE, top, line, size=12, weight="bold")
        top += 0.22
    if subject.right is not None:
        page.text(EDGE, top + 0.03, f"right answer: {subject.right}", size=10.5, color=GOOD)
        top += 0.25
    axes = page.axes(EDGE, top + 0.1, SIDE, 1.3)
    size, tint = 0.085, hues(1)[0]
    entries = ("kept", "merged into the row of its colour", "dropped")
    for number, entry in enumerate(entries):
        y = 0.03 + number * 0.13
        face = ("#57606a", (*tint, 0.55), "#1c2128")[number]
        edge = (OUTLINE, tint, "#30363d")[number]
        axes.add_patch(Rectangle((0.005, y), size, size, facecolor=face, edgecolor=edge, linewidth=(1.4, 0.6, 0.6)[number]))
        axes.text(size + 0.05, y + size / 2, entry, color=INK, fontsize=9.5, va="center_baseline")


def _label(page: _Page, left: float, top: float, name: str, answer: Answer, right: bool) -> None:
    """The policy's name, its answer and what its cache cost."""
    page.text(left, top + 0.18, name, size=12, weight="bold")
    lines = textwrap.wrap(answer.text or "(nothing)", 18)[:3]
    for number, line in enumerate(lines):
        mark = ("✓ " if right else "✗ ") if number == 0 else "   "
        page.text(left, top + 0.48 + 0.2 * number, mark + line, size=11, color=GOOD if right else BAD)
    below = top + 0.55 + 0.2 * len(lines)
    rows = sum(answer.rows) / len(answer.rows)
    page.text(left, below + 0.05, f"{rows:.0f} of {answer.tokens} rows", size=9.5, color=FAINT)
    page.text(left, below + 0.24, f"{answer.kv_bytes / answer.full_kv_bytes:.0%} of the bytes", size=9.5, color=FAINT)
