"""Where that lies which a code word means: first the text tells, then the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, one_of
from ._task import Asked, Task

__all__ = ["Find"]


@final
@dataclass(frozen=True)
class Find(Task):
    """``where is the zib`` → ``zib cat c4``."""

    name: ClassVar[str] = "find"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about an object of the picture, all of which are in the book."""
        objects = scenes.objects[:, 0]
        cell = one_of(objects >= 0, rng)
        name = np.take_along_axis(objects, cell[:, None], axis=1)
        entry = np.argmax(scenes.book[..., 1] == name, axis=1)
        code = world.code_ids[np.take_along_axis(scenes.book[..., 0], entry[:, None], axis=1)]
        question = beside(world, len(objects), "where is the", code)
        return question, beside(world, len(objects), code, world.name_ids[name], world.cell_ids[cell])
