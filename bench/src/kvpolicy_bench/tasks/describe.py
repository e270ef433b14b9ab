"""Everything that lies in a picture: the longest answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, told
from ._task import Asked, Task

__all__ = ["Describe"]


@final
@dataclass(frozen=True)
class Describe(Task):
    """``describe the picture`` → ``a1 cat a3 dog …`` in reading order: 128 words for a full grid of 8 x 8."""

    name: ClassVar[str] = "describe"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask for all objects of the only picture."""
        objects = scenes.objects[:, 0]
        return beside(world, len(objects), "describe the picture"), told(world, objects)
