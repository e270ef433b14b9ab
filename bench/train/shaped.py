"""Which word the image tokens of an Easy-VQA image are to carry: those that lie on its shape, what shape it is."""

from __future__ import annotations

import numpy as np
from kvpolicy_bench.assets import SHAPE, Split, shapes
from kvpolicy_bench.words import NONE
from kvpolicy_bench.world import World

__all__ = ["shaped"]

KINDS = ("circle", "rectangle", "triangle")


def shaped(world: World, split: Split) -> np.ndarray:
    """Word ids, int64 [images, tokens along a side, tokens along a side].

    A token lies on the shape if most of its pixels have not the colour of the corners. `NONE` stands on the ground, and
    everywhere in an image of which no published question asks for the shape.
    """
    data = shapes(split)
    images = data.images.astype(np.int16)
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    differs = (images != np.median(corners, axis=1)[:, None, None]).any(-1)
    tokens = world.side // world.patch
    each = SHAPE // tokens
    share = differs.reshape(-1, tokens, each, tokens, each).mean((2, 4))

    kinds = np.full(len(images), NONE)
    for kind in KINDS:
        answer = data.answers.index(kind)
        kinds[data.asked[data.asked[:, 2] == answer, 0]] = world.index[kind]
    return np.where(share > 0.5, kinds[:, None, None], NONE)
