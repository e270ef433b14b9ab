"""Turn a picture and a question into what the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

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


def encode(processor: Any, prompt: Prompt, device: Any = "cpu") -> Any:
    """The model's inputs (``input_ids``, ``pixel_values`` …): by the chat template where the processor has one."""
    if getattr(processor, "chat_template", None) is None:
        token = getattr(processor, "image_token", "<image>")
        text = f"{prompt.before} {token} {prompt.question}".strip()
    else:
        content = [{"type": "text", "text": prompt.before}] if prompt.before else []
        content += [{"type": "image"}, {"type": "text", "text": prompt.question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=prompt.image, text=text, return_tensors="pt").to(device)
