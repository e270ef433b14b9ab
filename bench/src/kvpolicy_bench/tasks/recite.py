"""The whole code book: a long answer that only the text tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..words import NONE
from ..world import World
from ._columns import beside
from ._task import Asked, Task

__all__ = ["Recite"]


@final
@dataclass(frozen=True)
class Recite(Task):
    """``read the code`` → ``zib cat wap owl …``, entry by entry."""

    name: ClassVar[str] = "recite"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask for all entries."""
        words = np.stack([world.code_ids[scenes.book[..., 0]], world.name_ids[scenes.book[..., 1]]], axis=-1)
        words = np.where(scenes.book[..., :1] < 0, NONE, words)
        return beside(world, len(words), "read the code"), words.reshape(len(words), -1)
