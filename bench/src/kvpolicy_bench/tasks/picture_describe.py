"""Everything that lies in one of several pictures: a longer answer from a part of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, told
from ._task import Asked, Task

__all__ = ["PictureDescribe"]


@final
@dataclass(frozen=True)
class PictureDescribe(Task):
    """``describe picture two`` → ``a1 cat a3 dog …`` in reading order."""

    name: ClassVar[str] = "picture-describe"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask for all objects of one picture."""
        count, pictures, _ = scenes.objects.shape
        picture = rng.integers(pictures, size=count)
        objects = scenes.objects[np.arange(count), picture]
        return beside(world, count, "describe picture", world.ordinal_ids[picture]), told(world, objects)
