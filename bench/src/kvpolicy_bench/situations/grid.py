"""An emoji in every cell: information is spread evenly over the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ..pictures import Pictures
from ..scenes import Scenes
from ..words import IMAGE
from ..world import World
from ._chance import distinct

__all__ = ["Grid"]


@final
@dataclass(frozen=True, slots=True)
class Grid:
    """A full grid of different emoji on a plain colour.

    Attributes:
        least: fill a square of at least so many cells per side, somewhere; ``None`` fills everything. Training begins
            with parts: a lookup among few is learned first.
    """

    least: int | None = None
    group: str = "grid"

    def draw(self, world: World, count: int, rng: np.random.Generator) -> Scenes:
        """Draw so many scenes."""
        side = rng.integers(self.least or world.grid, world.grid + 1, (count, 1))
        objects = distinct(count, len(world.names), world.grid**2, rng)
        corner = rng.integers(world.grid - side + 1, size=(2, count, 1))
        row, column = np.divmod(np.arange(world.grid**2), world.grid)
        inside = (row >= corner[0]) & (row < corner[0] + side) & (column >= corner[1]) & (column < corner[1] + side)
        pictures = Pictures.behind(world, np.where(inside, objects, -1), np.zeros(count, bool), rng)
        return Scenes(pictures, np.full((count, 1), IMAGE))
