"""Where the tokens of a prompt lie: which are image patches, on what grid, and what the others say."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

__all__ = ["Layout", "seen_by_model"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The tokens of one prompt with one image.

    Attributes:
        rows: patches from top to bottom.
        columns: patches from left to right.
        first: arrival index of the first image token; the others follow it row by row.
        words: the text of every token that is not an image token, by arrival index, in order.
    """

    rows: int
    columns: int
    first: int
    words: tuple[tuple[int, str], ...]

    @property
    def patches(self) -> range:
        """Arrival indices of the image tokens, row by row."""
        return range(self.first, self.first + self.rows * self.columns)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.patches) + len(self.words)

    @classmethod
    def of(cls, inputs: Any, config: Any, tokenizer: Any) -> Layout | None:
        """Read it off a model's inputs; None where the image tokens do not form one grid (tiled images)."""
        ids = inputs["input_ids"][0].tolist()
        image = [index for index, token in enumerate(ids) if token == config.image_token_id]
        if "image_grid_thw" in inputs:
            _, height, width = inputs["image_grid_thw"][0].tolist()
            merge = config.vision_config.spatial_merge_size
            rows, columns = height // merge, width // merge
        else:
            rows = columns = isqrt(len(image))
        if not image or rows * columns != len(image) or image[-1] - image[0] + 1 != len(image):
            return None
        words = tuple(
            (index, tokenizer.decode([token]).strip()) for index, token in enumerate(ids) if token != ids[image[0]]
        )
        return cls(rows, columns, image[0], words)


def seen_by_model(inputs: Any, processor: Any, image: Any) -> np.ndarray[Any, Any]:
    """The picture as the model saw it, cropped and resized, uint8 [height, width, 3]."""
    pixels = inputs["pixel_values"]
    if pixels.ndim != 4:  # already cut into patches: the whole picture was used
        return np.asarray(image.convert("RGB"))
    normal = pixels[0].float().cpu().numpy().transpose(1, 2, 0)
    mean, deviation = (np.asarray(values) for values in _normalisation(processor.image_processor))
    restored: np.ndarray[Any, Any] = np.clip((normal * deviation + mean) * 255.0, 0, 255).round().astype(np.uint8)
    return restored


def _normalisation(image_processor: Any) -> tuple[Any, Any]:
    if not image_processor.do_normalize:
        return [0.0] * 3, [1.0] * 3
    return image_processor.image_mean, image_processor.image_std
