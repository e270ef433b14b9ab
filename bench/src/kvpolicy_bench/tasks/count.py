"""How many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..scenes import Scenes
from ..words import NONE
from ..world import World
from ._columns import beside, one_of
from ._task import Asked, Task

__all__ = ["Count"]


@final
@dataclass(frozen=True)
class Count(Task):
    """``count the cat`` → ``cat a1 c4 d2 3``: the answer points at each before it says how many."""

    name: ClassVar[str] = "count"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask about a kind that occurs in the only picture."""
        objects = scenes.objects[:, 0]
        kind = np.take_along_axis(objects, one_of(objects >= 0, rng)[:, None], axis=1)
        cells = np.where(objects == kind, world.cell_ids, NONE)
        many = world.number_ids[(objects == kind).sum(axis=1)]
        question = beside(world, len(objects), "count the", world.name_ids[kind])
        return question, beside(world, len(objects), world.name_ids[kind], cells, many)
