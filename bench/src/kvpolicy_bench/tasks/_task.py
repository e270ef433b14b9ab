"""What a task is: it asks one question of every scene of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..assets import Style
from ..sample import Sample
from ..scenes import Scenes, Situation
from ..world import FULL, World

__all__ = ["Asked", "Task"]

Asked = tuple[np.ndarray, np.ndarray]  # word ids of questions [B, q] and of answers [B, a]; NONE for no word


@dataclass(frozen=True)
class Task(ABC):
    """A question about one kind of scene.

    An answer first repeats what was asked ("b2 cat"): its first token comes out of the prefill, which still attends to
    every row, and what is to be found out must come from the compressed cache. A question ends in the word that it is
    about, so that one lookup answers it.

    Attributes:
        situation: the scenes that it is asked about.
    """

    situation: Situation
    name: ClassVar[str]

    @property
    def label(self) -> str:
        """Task and situation, as results name them."""
        return f"{self.name}/{self.situation.group}"

    @abstractmethod
    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """One question of every scene, and its only right answer. Training calls it with batches."""

    def draw(self, rng: np.random.Generator, world: World = FULL, style: Style = "google") -> Sample:
        """Draw one scene and one question. The same generator state gives the same sample."""
        scenes = self.situation.draw(world, 1, rng)
        question, answer = self.ask(world, scenes, rng)
        return Sample.of(
            world,
            scenes,
            question=world.text(question[0]),
            answer=world.text(answer[0]),
            task=self.name,
            group=self.situation.group,
            style=style,
            split=getattr(self.situation, "split", "test"),
        )
