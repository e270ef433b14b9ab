"""A few emoji on a photograph: most of the image says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ..pictures import Pictures
from ..scenes import Scenes
from ..words import IMAGE
from ..world import World
from ._chance import distinct, shuffled

__all__ = ["Photo"]


@final
@dataclass(frozen=True, slots=True)
class Photo:
    """One to ``most`` different emoji on a real photograph."""

    most: int = 4
    group: str = "photo"

    def draw(self, world: World, count: int, rng: np.random.Generator) -> Scenes:
        """Draw so many scenes."""
        cells = np.arange(world.grid**2)
        taken = shuffled(cells < rng.integers(1, self.most + 1, (count, 1)), rng)
        objects = distinct(count, len(world.names), len(cells), rng)
        pictures = Pictures.behind(world, np.where(taken, objects, -1), np.ones(count, bool), rng)
        return Scenes(pictures, np.full((count, 1), IMAGE))
