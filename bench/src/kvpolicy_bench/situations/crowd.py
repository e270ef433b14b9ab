"""The same few emoji again and again: to count them, every one must be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ..pictures import Pictures
from ..scenes import Scenes
from ..words import IMAGE
from ..world import World
from ._chance import distinct, shuffled

__all__ = ["Crowd"]


@final
@dataclass(frozen=True, slots=True)
class Crowd:
    """As many kinds as the grid has rows, each of them one to as many times; half of the pictures on a photograph."""

    group: str = "crowd"

    def draw(self, world: World, count: int, rng: np.random.Generator) -> Scenes:
        """Draw so many scenes."""
        kinds = distinct(count, len(world.names), world.grid, rng)
        times = rng.integers(1, world.grid + 1, (count, world.grid, 1))
        seats = np.where(np.arange(world.grid) < times, kinds[..., None], -1).reshape(count, -1)
        pictures = Pictures.behind(world, shuffled(seats, rng), rng.random(count) < 0.5, rng)
        return Scenes(pictures, np.full((count, 1), IMAGE))
