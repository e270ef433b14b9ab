"""Where several things lie: an answer of some length that looks up names, as `Row` looks up cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..words import NONE
from ..world import World
from ._columns import beside
from ._task import Asked, Task

__all__ = ["Places"]


@final
@dataclass(frozen=True)
class Places(Task):
    """``where are the cat owl bee …`` → ``cat c4 owl a1 bee b7 …``: as many objects as the grid has rows."""

    name: ClassVar[str] = "places"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about objects of the only picture, or about all of them if it has fewer."""
        objects = scenes.objects[:, 0]
        cells = np.argsort((objects < 0) + rng.random(objects.shape), axis=1)[:, : world.grid]
        found = np.take_along_axis(objects, cells, axis=1)
        wanted = np.where(found < 0, NONE, world.name_ids[found])
        told = np.stack([wanted, np.where(found < 0, NONE, world.cell_ids[cells])], axis=-1)
        return beside(world, len(objects), "where are the", wanted), told.reshape(len(objects), -1)
