"""Three drawings of `docs/concepts.md`: lengths, heads, and what merging does to a softmax.

python -m scripts.concept_drawings    (in the root of the repository)
"""

from __future__ import annotations

import math

from scripts.page import DOCS
from scripts.svg import Drawing

__all__ = ["DRAWINGS", "PICTURES"]

PICTURES = DOCS / "assets"
CELL = 44.0


def lengths() -> str:
    """Eight tokens were seen, four rows are held: the next token has position 8 and takes the free slot."""
    kept = {0: 0, 5: 1, 6: 3, 7: 4}  # position: slot; slot 2 is free
    drawing = Drawing(
        560,
        250,
        "Tokens seen and rows held",
        "Positions 0 to 7 have been seen. Four rows are held, in slots of any order, each with its own position; one "
        "slot is empty. The next token has position 8 and is written into the empty slot.",
    )
    left, top, bottom = 140.0, 46.0, 160.0
    drawing.text(16, top + 27, "tokens seen", "b")
    drawing.text(16, bottom + 27, "rows held", "b")
    slot = {position: left + (place + 1) * (CELL + 4) for position, place in kept.items()}
    free = left + 3 * (CELL + 4)
    for position, x in slot.items():
        drawing.line("line", (left + position * (CELL + 1) + CELL / 2, top + CELL), (x + CELL / 2, bottom), arrow=True)
    for position in range(9):
        look = "amber" if position == 8 else "blue" if position in kept else "box"
        drawing.rect(look, left + position * (CELL + 1), top, CELL, CELL)
        drawing.text(left + position * (CELL + 1) + CELL / 2, top + 27, str(position), "m")
    drawing.line("dash", (left + 8 * (CELL + 1) + CELL / 2, top + CELL), (free + CELL / 2, bottom), arrow=True)
    for position, x in slot.items():
        drawing.rect("blue", x, bottom, CELL, CELL)
        drawing.text(x + CELL / 2, bottom + 27, str(position), "m")
    drawing.rect("box", free, bottom, CELL, CELL)
    drawing.text(free + CELL / 2, bottom + 27, "-1", "m")
    drawing.text(left, 32, "logical length: 8, so the next position is 8", "s")
    drawing.text(left + CELL + 4, bottom + CELL + 24, "physical length: 4 rows in 5 slots", "s")
    return str(drawing)


def heads() -> str:
    """Query heads share key/value heads; each key/value head has rows of its own, and may hold another number."""
    rows = (5, 3)
    drawing = Drawing(
        560,
        250,
        "Grouped and ragged heads",
        "Four query heads use two key/value heads, two each. The first key/value head holds five rows, the second "
        "three. They are stored one after another.",
    )
    drawing.text(16, 50, "query heads", "b")
    drawing.text(16, 128, "key/value heads", "b")
    drawing.text(16, 212, "storage", "b")
    x = 162.0
    for head, count in enumerate(rows):
        look = ("green", "violet")[head]
        width = count * 36.0 + (count - 1) * 4
        for query in range(2):
            middle = x + (query + 0.5) * width / 2
            drawing.line("line", (middle, 62), (x + width / 2, 101), arrow=True)
            drawing.rect("box", middle - 18, 28, 36, 34)
            drawing.text(middle, 50, str(2 * head + query), "m")
        for row in range(count):
            drawing.rect(look, x + row * 40, 102, 36, 38)
        drawing.text(x + width / 2, 160, f"{count} rows", "s m")
        x += width + 40
    at = 162.0
    for head, count in enumerate(rows):
        for _ in range(count):
            drawing.rect(("green", "violet")[head], at, 188, 36, 38, round_by=0)
            at += 36
    return str(drawing)


def merging() -> str:
    """The same attention before a merge, after it, and after it with the count in the attention."""
    logits = (1.0, 0.6, 0.6, 0.6)  # of one query: a row by itself, and three alike that become one
    whole = [math.exp(logit) for logit in logits]
    alone, three = whole[0], sum(whole[1:])
    merged = math.exp(logits[1])
    bars = (
        ("four rows", [share / sum(whole) for share in whole]),
        ("three merged", [alone / (alone + merged), merged / (alone + merged)]),
        ("+ log(count)", [alone / (alone + three), three / (alone + three)]),
    )
    drawing = Drawing(
        560,
        226,
        "What a softmax makes of a merged row",
        "Three of four rows are alike and receive most of the attention together. Merged into one row they receive as "
        "much as one of them did; with the logarithm of the count added, as much as all three.",
    )
    left, width = 150.0, 380.0
    for number, (name, shares) in enumerate(bars):
        y = 26.0 + number * 64
        drawing.text(16, y + 27, name, "b")
        x = left
        for place, share in enumerate(shares):
            drawing.rect("blue" if place == 0 else "amber", x, y, share * width, CELL, round_by=0)
            drawing.text(x + share * width / 2, y + 27, f"{share:.0%}", "m")
            x += share * width
    return str(drawing)


DRAWINGS = {"lengths": lengths, "heads": heads, "merging": merging}


def main() -> None:
    """Write them."""
    for name, draw in DRAWINGS.items():
        (PICTURES / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
