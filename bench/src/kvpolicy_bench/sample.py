"""One prompt with its question and answer, and how a batch of them becomes a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .assets import Split, Style
from .drawing import draw
from .scenes import Scenes
from .words import IMAGE
from .world import World

__all__ = ["Sample", "encode"]


@dataclass(frozen=True)
class Sample:
    """A prompt, a question, and the only right answer.

    Attributes:
        parts: what stands before the question, in order: texts and pictures.
        question: the text after them.
        answer: what greedy decoding must give, word for word.
        task: the task that drew it.
        group: where its information lives.
    """

    parts: tuple[str | Image.Image, ...]
    question: str
    answer: str
    task: str
    group: str

    @classmethod
    def of(
        cls,
        world: World,
        scenes: Scenes,
        *,
        question: str,
        answer: str,
        task: str,
        group: str,
        style: Style,
        split: Split,
    ) -> Sample:
        """The first of the scenes, drawn."""
        parts: list[str | Image.Image] = []
        number = 0
        texts = " ".join("|" if word == IMAGE else world.text([word]) for word in scenes.prompt[0]).split("|")
        for place, text in enumerate(texts):
            if place:
                parts.append(Image.fromarray(draw(world, scenes.pictures, number, style, split)))
                number += 1
            if words := " ".join(text.split()):
                parts.append(words)
        return cls(tuple(parts), question, answer, task, group)

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, in order."""
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def text(self) -> str:
        """The prompt for a processor, with ``<image>`` where a picture goes."""
        return " ".join([*(part if isinstance(part, str) else "<image>" for part in self.parts), self.question])


def encode(processor: Any, samples: Sequence[Sample], device: Any = "cpu") -> Any:
    """The model's inputs for a batch of samples, padded on the left."""
    images = [sample.images for sample in samples]
    texts = [sample.text for sample in samples]
    return processor(images=images, text=texts, padding=True, return_tensors="pt").to(device)
