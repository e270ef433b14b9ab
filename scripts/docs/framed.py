"""A picture on a page: scrolled where the screen is too narrow to read it, with a text for those who cannot see it."""

from __future__ import annotations

import base64
import io
from html import escape

from matplotlib.figure import Figure

__all__ = ["figure", "framed"]


def figure(drawn: Figure, told: str) -> str:
    """A figure of matplotlib, with its own ground, so that it looks the same in either palette.

    Args:
        drawn: the figure.
        told: what it shows.
    """
    file = io.BytesIO()
    drawn.savefig(file, format="webp", dpi=160)
    data = base64.b64encode(file.getvalue()).decode()
    return framed(f'<img class="kv-wide" alt="{escape(told)}" src="data:image/webp;base64,{data}">')


def framed(body: str, caption: str = "") -> str:
    """HTML of one's own, which reads well in both palettes."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="kv-figure"><div class="kv-scroll">{body}</div>{below}</figure>'
