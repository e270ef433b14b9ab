"""Several pictures in a prompt: only one of them matters to a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ..pictures import Pictures
from ..scenes import Scenes
from ..words import IMAGE
from ..world import World
from ._chance import distinct, shuffled

__all__ = ["Several"]


@final
@dataclass(frozen=True, slots=True)
class Several:
    """Two to four pictures whose emoji lie in the same cells, so that the cell alone does not tell which is meant.

    Attributes:
        pictures: how many; ``None`` draws a number.
    """

    pictures: int | None = None
    group: str = "several"

    def draw(self, world: World, count: int, rng: np.random.Generator) -> Scenes:
        """Draw so many scenes, of equally many pictures."""
        many = self.pictures or int(rng.integers(2, 5))
        cells = np.arange(world.grid**2)
        taken = shuffled(cells < rng.integers(world.grid // 2, 2 * world.grid + 1, (count, 1)), rng)
        names = distinct(count, len(world.names), len(world.names), rng)
        objects = np.empty((count, many, len(cells)), np.int64)
        rank = np.cumsum(taken, axis=1) - 1  # emoji differ within a scene, across its pictures, too
        for picture in range(many):
            own = np.take_along_axis(names, (rank * many + picture) % len(world.names), axis=1)
            objects[:, picture] = np.where(taken, own, -1)
        pictures = Pictures.behind(world, objects.reshape(-1, len(cells)), rng.random(count * many) < 0.5, rng)
        words = np.stack([world.ordinal_ids[:many], np.full(many, IMAGE)], axis=1).ravel()
        return Scenes(pictures, np.tile(words, (count, 1)))
