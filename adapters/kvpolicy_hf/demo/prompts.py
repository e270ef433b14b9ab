"""Turn a picture and a question into what the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ..loading.inputs import inputs_of
from .scenes import Question, Scene

__all__ = ["Prompt", "encode"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question about one picture.

    Attributes:
        image: the picture.
        question: the text after it.
        before: the text in front of it.
        answer: the only right answer, if it is known.
    """

    image: Image.Image
    question: str
    before: str = ""
    answer: str | None = None

    @classmethod
    def about(cls, scene: Scene, question: Question) -> Prompt:
        """The prompt for a question about a drawn scene."""
        before, _, after = scene.prompt(question).partition("<image>")
        return cls(Image.fromarray(scene.image), after.strip(), before.strip(), question.answer)


def encode(processor: Any, prompt: Prompt, device: Any = "cpu") -> dict[str, Tensor]:
    """The model's inputs, see `inputs_of`."""
    parts = (prompt.before, prompt.image, prompt.question)
    return inputs_of(processor, [tuple(part for part in parts if part)], device)
