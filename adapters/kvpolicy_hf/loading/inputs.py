"""Texts and pictures as what a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from PIL.Image import Image
from torch import Tensor

__all__ = ["Shown", "inputs_of"]

Shown: TypeAlias = str | Image
"""A part of a prompt."""


def inputs_of(processor: Any, prompts: Sequence[tuple[Shown, ...]], device: Any = "cpu") -> dict[str, Tensor]:
    """The model's inputs (``input_ids``, ``pixel_values`` …) for a batch of prompts, padded on the left.

    Texts and pictures go through the chat template; where there is none, they are joined by spaces.

    Args:
        processor: of the model, or its tokenizer where it takes text alone; then the prompts hold no picture.
        prompts: each its texts and pictures, in their order.
        device: where the inputs go.
    """
    sees = hasattr(processor, "image_processor")
    tokenizer = processor.tokenizer if sees else processor
    pictures = [[part for part in parts if not isinstance(part, str)] for parts in prompts]
    texts = [_text(processor, parts, sees) for parts in prompts]
    bos = tokenizer.bos_token
    arguments: dict[str, Any] = {
        "padding": True,
        "padding_side": "left",
        "return_tensors": "pt",
        # A template that writes the first token itself needs no second one.
        "add_special_tokens": not (bos and all(text.startswith(bos) for text in texts)),
    }
    if any(pictures):
        return dict(processor(images=pictures, text=texts, **arguments).to(device))
    return dict(tokenizer(texts, **arguments).to(device))


def _text(processor: Any, parts: tuple[Shown, ...], sees: bool) -> str:
    if getattr(processor, "chat_template", None) is None:
        image = getattr(processor, "image_token", "<image>")
        return " ".join(part if isinstance(part, str) else image for part in parts)
    content: Any = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    if not sees:
        content = " ".join(str(part) for part in parts)
    turns = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
