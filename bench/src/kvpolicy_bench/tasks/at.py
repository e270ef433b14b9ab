"""What lies in a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, one_of
from ._task import Asked, Task

__all__ = ["At"]


@final
@dataclass(frozen=True)
class At(Task):
    """``what is at c4`` → ``c4 cat``; three times in ten about any cell, which may hold ``nothing``."""

    name: ClassVar[str] = "at"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about a cell of the only picture."""
        objects = scenes.objects[:, 0]
        cell = one_of((objects >= 0) | (rng.random((len(objects), 1)) < 0.3), rng)
        found = np.take_along_axis(objects, cell[:, None], axis=1)[:, 0]
        question = beside(world, len(objects), "what is at", world.cell_ids[cell])
        return question, beside(world, len(objects), world.cell_ids[cell], world.name_ids[found])
