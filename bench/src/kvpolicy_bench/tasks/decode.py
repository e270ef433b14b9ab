"""What a code word means: only the text tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..world import World
from ._columns import beside, one_of
from ._task import Asked, Task

__all__ = ["Decode"]


@final
@dataclass(frozen=True)
class Decode(Task):
    """``what means zib`` → ``zib cat``."""

    name: ClassVar[str] = "decode"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about an entry of the book."""
        entry = one_of(scenes.book[..., 0] >= 0, rng)
        code, name = np.take_along_axis(scenes.book, entry[:, None, None], axis=1)[:, 0].T
        question = beside(world, len(code), "what means", world.code_ids[code])
        return question, beside(world, len(code), world.code_ids[code], world.name_ids[name])
