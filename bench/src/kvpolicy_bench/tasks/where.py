"""Where something lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, one_of
from ._task import Asked, Task

__all__ = ["Where"]


@final
@dataclass(frozen=True)
class Where(Task):
    """``where is the cat`` → ``cat c4``."""

    name: ClassVar[str] = "where"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about an object of the only picture, which holds no other of its kind."""
        objects = scenes.objects[:, 0]
        cell = one_of(objects >= 0, rng)
        wanted = world.name_ids[np.take_along_axis(objects, cell[:, None], axis=1)]
        question = beside(world, len(objects), "where is the", wanted)
        return question, beside(world, len(objects), wanted, world.cell_ids[cell])
