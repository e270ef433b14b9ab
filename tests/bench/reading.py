"""An independent truth: what a picture shows is read from its pixels, and answers are worked out from the text."""

from __future__ import annotations

import numpy as np
from kvpolicy_bench.assets import SHAPE, TILE, atlas, shapes
from kvpolicy_bench.words import NAMES
from PIL import Image


def read(image: Image.Image) -> dict[str, str]:
    """The emoji of every cell that holds one, in reading order.

    Where a tile is opaque, its pixels are the picture's. The tile that explains the most pixels is the one.
    """
    pixels, grid = np.asarray(image), image.width // TILE
    spots = pixels.reshape(grid, TILE, grid, TILE, 3).swapaxes(1, 2).reshape(grid * grid, TILE * TILE, 3)
    best = np.zeros(len(spots), np.int64)
    found = {}
    for name, tile in zip(NAMES, atlas("google").reshape(len(NAMES), -1, 4), strict=True):
        opaque = np.flatnonzero(tile[:, 3] == 1.0)
        likely = np.flatnonzero((spots[:, opaque[::50]] == tile[opaque[::50], :3]).all(axis=(1, 2)))
        for cell in likely[(spots[likely][:, opaque] == tile[opaque, :3]).all(axis=(1, 2))]:
            if len(opaque) > best[cell]:
                best[cell], found[cell] = len(opaque), name
    return {"abcdefgh"[cell // grid] + str(cell % grid + 1): found[cell] for cell in sorted(found)}


def told(cells: dict[str, str]) -> str:
    return " ".join(f"{cell} {name}" for cell, name in cells.items())


def answer(parts: tuple[str | Image.Image, ...], question: str) -> set[str]:
    """Every right answer to a question about emoji."""
    pictures = [read(part) for part in parts if not isinstance(part, str)]
    text = " ".join(part for part in parts if isinstance(part, str))
    words, cells = question.split(), pictures[0]
    at = {name: [cell for cell in cells if cells[cell] == name] for name in cells.values()}
    asked = words[-1]
    if text.startswith("code"):
        entries = [entry.split() for entry in text.removeprefix("code :").split(";") if entry.strip()]
        if question == "read the code":
            return {" ".join(map(" ".join, entries))}
        name = dict(entries)[asked]
        if question.startswith("what means"):
            return {f"{asked} {name}"}
        return {f"{asked} {name} {cell}" for cell in at[name]}
    if text.startswith("one"):
        ordinals = dict(zip(text.split(), pictures, strict=True))
        if words[0] == "in":
            return {f"{asked} {ordinals[words[2]][asked]}"}
        if words[0] == "describe":
            return {told(ordinals[asked])}
        return {f"{asked} {o} {cell}" for o, shown in ordinals.items() for cell in shown if shown[cell] == asked}
    match words[0]:
        case "what":
            return {f"{asked} {cells.get(asked, 'nothing')}"}
        case "where" if words[1] == "are":
            return {" ".join(f"{name} {at[name][0]}" for name in words[3:])}
        case "where":
            return {f"{asked} {cell}" for cell in at[asked]}
        case "read":
            return {told({cell: name for cell, name in cells.items() if cell[0] == asked})}
        case "describe":
            return {told(cells)}
        case "count":
            return {f"{asked} {' '.join(at[asked])} {len(at[asked])}"}
    raise ValueError(question)


def published(image: Image.Image) -> set[tuple[str, str]]:
    """What Easy-VQA's test split asks about an image, and answers."""
    small = np.asarray(image)[:: image.height // SHAPE, :: image.width // SHAPE]
    split = shapes("test")
    number = int((split.images == small).all(axis=(1, 2, 3)).argmax())
    assert (split.images[number] == small).all()
    return {(split.questions[q], split.answers[a]) for image, q, a in split.asked if image == number}
