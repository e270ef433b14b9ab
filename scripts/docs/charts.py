"""Two small charts in the colours of the page: bars, and lines over a count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["bars", "lines"]

WIDE, TALL, LEFT, RIGHT, BOTTOM, TOP = 360.0, 200.0, 34.0, 92.0, 34.0, 10.0


def bars(title: str, lengths: Mapping[str, float]) -> str:
    """A panel with a bar for each name."""
    most = max(lengths.values())
    rows = "".join(
        f'<span>{escape(name)}</span><span><i style="width:{100 * length / most:.0f}%"></i></span>'
        f"<span>{length:g}</span>"
        for name, length in lengths.items()
    )
    return f'<div class="kv-panel"><p>{escape(title)}</p><div class="kv-bars">{rows}</div></div>'


def lines(across: str, up: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A line for each name, which stands at its end."""
    points = [point for line in series.values() for point in line]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    most = max(y for _, y in points) or 1.0
    wide, tall = WIDE - LEFT - RIGHT, TALL - BOTTOM - TOP

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * (x - left) / max(right - left, 1e-9), TOP + tall * (1 - y / most)

    drawn = [f'<path class="kv-axis" d="M{LEFT} {TOP}V{TOP + tall}H{LEFT + wide}"/>']
    for number, (name, line) in enumerate(series.items()):
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in line)
        x, y = place(*line[-1])
        drawn.append(f'<path class="kv-line kv-line-{number % 4}" d="M{path}"/>')
        drawn.append(f'<text class="kv-line-{number % 4}" x="{x + 5:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    ticks = ((place(value, 0)[0], value) for value in (left, right))
    drawn += [f'<text class="kv-tick" x="{x:.1f}" y="{TOP + tall + 13}">{value:g}</text>' for x, value in ticks]
    drawn.append(f'<text class="kv-tick" x="{LEFT + wide / 2:.1f}" y="{TOP + tall + 27}">{escape(across)}</text>')
    drawn.append(f'<text class="kv-side" x="{LEFT - 5}" y="{TOP + 4}">{most:g}</text>')
    drawn.append(f'<text class="kv-side" x="{LEFT - 5}" y="{TOP + tall}">0</text>')
    told = f"{up} against {across}: {', '.join(series)}"
    return (
        f'<p class="kv-legend">{escape(up)}</p><svg class="kv-chart" viewBox="0 0 {WIDE:g} {TALL:g}" role="img" '
        f'aria-label="{escape(told)}">{"".join(drawn)}</svg>'
    )
