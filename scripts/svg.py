"""Drawings as SVG text: a card with its own colours for light and dark, so that they show on any page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["Drawing", "number"]

# Class of a shape: what it looks like in the light, and what differs in the dark.
LIGHT = {
    ".card": "fill:#f6f8fa;stroke:#d0d7de",
    ".box": "fill:#ffffff;stroke:#57606a;stroke-width:1.3",
    ".blue": "fill:#ddf4ff;stroke:#0969da;stroke-width:1.3",
    ".green": "fill:#dafbe1;stroke:#1a7f37;stroke-width:1.3",
    ".amber": "fill:#fff8c5;stroke:#9a6700;stroke-width:1.3",
    ".violet": "fill:#fbefff;stroke:#8250df;stroke-width:1.3",
    "text": "font:14px system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2328",
    ".s": "font-size:12px;fill:#57606a",
    ".b": "font-weight:600",
    ".m": "text-anchor:middle",
    ".e": "text-anchor:end",
    ".line": "fill:none;stroke:#57606a;stroke-width:1.4",
    ".head": "fill:#57606a",
    ".rule": "fill:none;stroke:#d0d7de;stroke-width:1",
    ".grey": "fill:none;stroke:#8c959f;stroke-width:1.2;stroke-opacity:.6",
    ".greydot": "fill:#8c959f;fill-opacity:.6",
    ".dash": "fill:none;stroke:#57606a;stroke-width:1.4;stroke-dasharray:6 4",
    ".own": "fill:none;stroke:#0969da;stroke-width:2.4",
    ".owndot": "fill:#0969da",
    ".owntext": "fill:#0969da;font-weight:600",
}
DARK = {
    ".card": "fill:#161b22;stroke:#3d444d",
    ".box": "fill:#21262d;stroke:#9198a1",
    ".blue": "fill:#0c2d5e;stroke:#58a6ff",
    ".green": "fill:#12361f;stroke:#3fb950",
    ".amber": "fill:#3b2e0a;stroke:#d4a72c",
    ".violet": "fill:#341d5c;stroke:#b083f0",
    "text": "fill:#e6edf3",
    ".s": "fill:#b1bac4",
    ".line": "stroke:#b1bac4",
    ".head": "fill:#b1bac4",
    ".rule": "stroke:#3d444d",
    ".dash": "stroke:#b1bac4",
    ".own": "stroke:#58a6ff",
    ".owndot": "fill:#58a6ff",
    ".owntext": "fill:#58a6ff",
}


def number(value: float) -> str:
    """One decimal, where it says something. What differs by rounding alone is drawn alike."""
    return f"{round(round(value, 6), 1) + 0.0:g}"


class Drawing:
    """A picture of some size that is filled from the top.

    Args:
        width: in pixels.
        height: in pixels.
        title: what it is.
        description: what it shows, for who cannot see it.
    """

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.size = number(width), number(height)
        self.told = f'<title id="t">{escape(title)}</title>\n<desc id="d">{escape(description)}</desc>'
        self.parts: list[str] = []
        self.rect("card", 0.5, 0.5, width - 1, height - 1, round_by=8)

    def rect(self, look: str, x: float, y: float, width: float, height: float, *, round_by: float = 5) -> None:
        """A box."""
        place = " ".join(
            f'{name}="{number(value)}"'
            for name, value in (("x", x), ("y", y), ("width", width), ("height", height), ("rx", round_by))
        )
        self.parts.append(f'<rect class="{look}" {place}/>')

    def text(self, x: float, y: float, words: str, look: str = "", *, turn: bool = False) -> None:
        """A line of text; turned, it reads upwards."""
        turned = f' transform="rotate(-90 {number(x)} {number(y)})"' if turn else ""
        known = f' class="{look}"' if look else ""
        self.parts.append(f'<text{known} x="{number(x)}" y="{number(y)}"{turned}>{escape(words)}</text>')

    def line(self, look: str, *points: tuple[float, float], arrow: bool = False) -> None:
        """From point to point."""
        path = "L".join(f"{number(x)} {number(y)}" for x, y in points)
        end = ' marker-end="url(#head)"' if arrow else ""
        self.parts.append(f'<path class="{look}" d="M{path}"{end}/>')

    def dot(self, look: str, x: float, y: float, radius: float) -> None:
        """A filled circle."""
        self.parts.append(f'<circle class="{look}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"/>')

    def __str__(self) -> str:
        """The file, with the styles that are used."""
        body = "\n".join(self.parts)
        used = {f".{name}" for name in _words(body)} | {"text", ".head"}
        width, height = self.size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-labelledby="t d">\n{self.told}\n<style>\n{_sheet(LIGHT, used)}\n'
            f"@media (prefers-color-scheme:dark){{\n{_sheet(DARK, used)}\n}}\n</style>\n"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path class="head" d="M0 0 8 4 0 8z"/></marker></defs>\n{body}\n</svg>\n'
        )


def _words(body: str) -> set[str]:
    return {word for part in body.split('class="')[1:] for word in part.partition('"')[0].split()}


def _sheet(styles: Mapping[str, str], used: set[str]) -> str:
    return "\n".join(f"{name}{{{style}}}" for name, style in styles.items() if name in used)
