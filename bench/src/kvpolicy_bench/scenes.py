"""A batch of scenes: pictures and the text around them, before anything is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .pictures import Pictures
from .world import World

__all__ = ["Scenes", "Situation"]


@dataclass(frozen=True)
class Scenes:
    """B scenes of one kind.

    Attributes:
        pictures: the pictures of the first scene, then those of the second, …; equally many each.
        prompt: int64 [B, L], the words before the question; `IMAGE` where a picture goes, `NONE` for no word. A picture
            is in the same column of every scene.
        book: int64 [B, K, 2], code and name of each entry of the code book, -1 for no entry; K may be 0.
    """

    pictures: Pictures
    prompt: np.ndarray
    book: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 2), np.int64))

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def objects(self) -> np.ndarray:
        """int64 [B, pictures, cells]."""
        return self.pictures.objects.reshape(len(self), -1, self.pictures.objects.shape[1])


class Situation(Protocol):
    """Where information lives: a way to draw scenes. The same generator state gives the same scenes."""

    @property
    def group(self) -> str:
        """What results are grouped by."""
        ...

    def draw(self, world: World, count: int, rng: np.random.Generator) -> Scenes:
        """Draw so many scenes."""
        ...
