"""What lies in a cell of one of several pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, one_of
from ._task import Asked, Task

__all__ = ["PictureAt"]


@final
@dataclass(frozen=True)
class PictureAt(Task):
    """``in picture two what is at c4`` → ``c4 cat``."""

    name: ClassVar[str] = "picture-at"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about a cell that holds something."""
        count, pictures, _ = scenes.objects.shape
        picture = rng.integers(pictures, size=count)
        objects = scenes.objects[np.arange(count), picture]
        cell = one_of(objects >= 0, rng)
        found = world.name_ids[objects[np.arange(count), cell]]
        question = beside(world, count, "in picture", world.ordinal_ids[picture], "what is at", world.cell_ids[cell])
        return question, beside(world, count, world.cell_ids[cell], found)
