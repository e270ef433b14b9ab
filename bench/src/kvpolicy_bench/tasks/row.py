"""What lies in a row: an answer of some length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..words import NONE
from ..world import World
from ._columns import beside, one_of, told
from ._task import Asked, Task

__all__ = ["Row"]


@final
@dataclass(frozen=True)
class Row(Task):
    """``read row c`` → ``c1 cat c2 dog …``, cell by cell, each named first; empty cells are left out."""

    name: ClassVar[str] = "row"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about a row of the only picture that holds something."""
        objects = scenes.objects[:, 0]
        row = one_of(objects >= 0, rng) // world.grid
        here = np.repeat(np.arange(world.grid**2) // world.grid == row[:, None], 2, axis=1)
        words = np.where(here, told(world, objects), NONE)
        return beside(world, len(objects), "read row", world.row_ids[row]), words
