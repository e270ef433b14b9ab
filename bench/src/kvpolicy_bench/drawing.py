"""Draw one picture with numpy. `train/compose.py` draws whole batches with torch, to the same pixels."""

from __future__ import annotations

import numpy as np

from .assets import SHAPE, TILE, Split, Style, atlas, photos, shapes
from .pictures import Pictures
from .words import NAMES
from .world import World

__all__ = ["draw"]


def draw(world: World, pictures: Pictures, number: int, style: Style = "google", split: Split = "test") -> np.ndarray:
    """Picture ``number``, uint8 [side, side, 3].

    Args:
        world: how large it is, and which emoji its objects are.
        pictures: what to draw.
        number: which of them.
        style: whose emoji.
        split: the split of Easy-VQA that ``pictures.shape`` counts in.
    """
    image = _background(world, pictures, number, split)
    tiles = atlas(style)[_places(world)]
    for cell, found in enumerate(pictures.objects[number]):
        if found >= 0:
            row, column = divmod(cell, world.grid)
            spot = image[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            spot += tiles[found][..., 3:] * (tiles[found][..., :3] - spot)
    drawn: np.ndarray = np.rint(image).astype(np.uint8)
    return drawn


def _background(world: World, pictures: Pictures, number: int, split: Split) -> np.ndarray:
    side, steps = world.side, np.arange(world.side)
    across = steps[::-1] if pictures.mirror[number] else steps
    down = steps[::-1] if pictures.upside[number] else steps
    image: np.ndarray
    if pictures.shape[number] >= 0:
        small = shapes(split).images[pictures.shape[number]]
        image = small[np.ix_(down * SHAPE // side, across * SHAPE // side)].astype(np.float32)
    elif pictures.photo[number] >= 0:
        top, left, cut = pictures.crop[number]
        photo = photos()[pictures.photo[number]][np.ix_(top + down * cut // side, left + across * cut // side)]
        image = np.minimum(photo.astype(np.float32) * pictures.gain[number], np.float32(255))
    else:
        image = np.broadcast_to(pictures.colour[number], (side, side, 3)).copy()
    return image


def _places(world: World) -> list[int]:
    return [NAMES.index(name) for name in world.names]
