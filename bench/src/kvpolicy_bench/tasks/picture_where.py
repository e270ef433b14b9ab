"""Which of several pictures holds something, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, one_of
from ._task import Asked, Task

__all__ = ["PictureWhere"]


@final
@dataclass(frozen=True)
class PictureWhere(Task):
    """``where is the cat`` → ``cat two c4``."""

    name: ClassVar[str] = "picture-where"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about an object that occurs in one picture only."""
        count, _, cells = scenes.objects.shape
        objects = scenes.objects.reshape(count, -1)
        place = one_of(objects >= 0, rng)
        wanted = world.name_ids[objects[np.arange(count), place]]
        question = beside(world, count, "where is the", wanted)
        picture, cell = world.ordinal_ids[place // cells], world.cell_ids[place % cells]
        return question, beside(world, count, wanted, picture, cell)
