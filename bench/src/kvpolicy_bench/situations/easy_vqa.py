"""A published image: Easy-VQA, one coloured shape on a light ground."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from ..assets import Split, shapes
from ..pictures import Pictures
from ..scenes import Scenes
from ..words import IMAGE
from ..world import World

__all__ = ["EasyVQA"]


@final
@dataclass(frozen=True, slots=True)
class EasyVQA:
    """Images of one split, enlarged; those of the training split are mirrored at random, which no answer minds."""

    split: Split = "test"
    group: str = "easy-vqa"

    def draw(self, world: World, count: int, rng: np.random.Generator) -> Scenes:
        """Draw so many scenes."""
        objects = np.full((count, world.grid**2), -1)
        plain = Pictures.behind(world, objects, np.zeros(count, bool), rng)
        turned = rng.random((2, count)) < (0.5 if self.split == "train" else 0.0)
        shape = rng.integers(len(shapes(self.split).images), size=count)
        pictures = replace(plain, mirror=turned[0], upside=turned[1], shape=shape)
        return Scenes(pictures, np.full((count, 1), IMAGE))
