from __future__ import annotations

from ..prompts import Samples

RELEASED = """
It rounds the step from layer to layer down to an integer. Every layer after the first then has more rows than the
line through the first and the last gives it, so that the total is exceeded; the smaller the step, the more. It also
ranks and stores rows for each query head, as SnapKV's code does.
"""
CHOSEN = """
The line in integers by largest remainder, with exactly `k * L` rows in total. Everybody gets k where a prompt has
fewer than `2 k` tokens.
"""
MEASURED = """
The rows that the released budgets hand out beyond their total, window {window:.0f}, β {beta:.0f}, for prompts that
are long enough. They follow from the formula alone; no model is needed.

| rows per layer | {layers_0:.0f} layers | {layers_1:.0f} layers | {layers_2:.0f} layers |
|---|---|---|---|
| {rows_0:.0f} | {over_0_0:+.1%} | {over_0_1:+.1%} | {over_0_2:+.1%} |
| {rows_1:.0f} | {over_1_0:+.1%} | {over_1_1:+.1%} | {over_1_2:+.1%} |
| {rows_2:.0f} | {over_2_0:+.1%} | {over_2_1:+.1%} | {over_2_2:+.1%} |
| {rows_3:.0f} | {over_3_0:+.1%} | {over_3_1:+.1%} | {over_3_2:+.1%} |
| {rows_4:.0f} | {over_4_0:+.1%} | {over_4_1:+.1%} | {over_4_2:+.1%} |

The most between {least:.0f} and {largest:.0f} rows is {most:+.1%}, at {most_rows:.0f} rows and {most_layers:.0f}
layers.
"""

LAYERS, ROWS, WINDOW, BETA = (30, 32, 40), (64, 128, 256, 512, 2048), 8, 20


def measure(samples: Samples) -> dict[str, float]:
    assert samples.texts[0].layers == LAYERS[0]
    numbers: dict[str, float] = {"window": WINDOW, "beta": BETA, "least": ROWS[0], "largest": ROWS[-1]}
    numbers |= {f"layers_{place}": layers for place, layers in enumerate(LAYERS)}
    for row, rows in enumerate(ROWS):
        numbers[f"rows_{row}"] = rows
        numbers |= {f"over_{row}_{place}": _over(rows, layers) for place, layers in enumerate(LAYERS)}
    everywhere = {(rows, layers): _over(rows, layers) for rows in range(ROWS[0], ROWS[-1] + 1) for layers in LAYERS}
    rows, layers = max(everywhere, key=lambda pair: everywhere[pair])
    return numbers | {"most": everywhere[rows, layers], "most_rows": rows, "most_layers": layers}


def _over(rows: int, layers: int) -> float:
    """By what share the floored budgets exceed ``rows * layers``."""
    rest = rows - WINDOW
    last = rest // BETA
    first = 2 * rest - last
    step = (first - last) // (layers - 1)
    return sum(WINDOW + first - layer * step for layer in range(layers)) / (rows * layers) - 1
