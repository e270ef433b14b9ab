"""The questions of Easy-VQA, as published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, final

import numpy as np

from ..assets import Split, shapes
from ..scenes import Scenes
from ..situations import EasyVQA
from ..words import NONE
from ..world import World
from ._columns import beside
from ._task import Asked, Task

__all__ = ["Published"]


@final
@dataclass(frozen=True)
class Published(Task):
    """``is there a red shape`` → ``answer no``: the published answer, behind a word that costs the prefill's token."""

    situation: EasyVQA
    name: ClassVar[str] = "easy-vqa"

    def ask(self, world: World, scenes: Scenes, rng: np.random.Generator) -> Asked:
        """Ask one of the questions that were published about each image."""
        split = self.situation.split
        questions, answers = _texts(world, split)
        asked = shapes(split).asked
        first, past = (np.searchsorted(asked[:, 0], scenes.pictures.shape, side) for side in ("left", "right"))
        chosen = asked[rng.integers(first, past)]
        return questions[chosen[:, 1]], beside(world, len(chosen), "answer", answers[chosen[:, 2]])


@cache
def _texts(world: World, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Word ids of the split's questions [questions, longest] and answers [answers]."""
    texts = [world.ids(question) for question in shapes(split).questions]
    questions = np.full((len(texts), max(map(len, texts))), NONE)
    for row, words in zip(questions, texts, strict=True):
        row[: len(words)] = words
    return questions, world.ids(" ".join(shapes(split).answers))
