"""Where the tokens of a prompt lie: which are image patches, on what grid, and what the others say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from kvpolicy import IMAGE

from .._transformers import PreTrainedModel
from ..segments import segments
from .errors import PlotError

__all__ = ["Layout", "seen_by_model"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The tokens of one prompt with one image, counted without padding.

    Attributes:
        rows: patches from top to bottom.
        columns: patches from left to right.
        first: the first image token; the others follow it row by row.
        words: the text of every token that is not an image token, with its number, in order.
    """

    rows: int
    columns: int
    first: int
    words: tuple[tuple[int, str], ...]

    @property
    def patches(self) -> range:
        """The image tokens, row by row."""
        return range(self.first, self.first + self.rows * self.columns)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.patches) + len(self.words)

    @classmethod
    def of(cls, inputs: Mapping[str, Any], model: PreTrainedModel, tokenizer: Any, *, row: int = 0) -> Layout:
        """Read it off what goes into `generate`.

        Args:
            inputs: what the processor returned.
            model: its configuration names the image token.
            tokenizer: spells the other tokens.
            row: the batch row.

        Raises:
            PlotError: if there is no such batch row, or if its image tokens do not form one grid: there are none, or
                several pictures, or one cut into tiles.
        """
        batch = len(inputs["input_ids"])
        if type(row) is not int or not 0 <= row < batch:
            raise PlotError(f"Layout.of(row={row!r}): inputs hold {batch} prompts, 0 .. {batch - 1}.")
        mask = inputs.get("attention_mask")
        own = np.ones(inputs["input_ids"].shape[1], dtype=bool) if mask is None else mask[row].cpu().numpy() != 0
        ids = inputs["input_ids"][row].cpu().numpy()[own].tolist()
        shown = (segments(inputs, model) == IMAGE).cpu().numpy()
        patches = np.flatnonzero(shown[row][own])
        rows, columns = _grid(inputs, model, int(shown[:row].sum()), len(patches), int(shown.sum()))
        if not len(patches) or rows * columns != len(patches) or patches[-1] - patches[0] + 1 != len(patches):
            raise PlotError(
                f"the {len(patches)} image tokens of batch row {row} form no single grid. Hint: a prompt with one "
                f"picture that is not cut into tiles; or make the Layout yourself."
            )
        image = set(patches.tolist())
        words = [(n, tokenizer.decode([token]).strip()) for n, token in enumerate(ids) if n not in image]
        return cls(rows, columns, int(patches[0]), tuple(words))


def _grid(inputs: Mapping[str, Any], model: PreTrainedModel, before: int, count: int, every: int) -> tuple[int, int]:
    """Rows and columns of ``count`` image tokens, with ``before`` others ahead of them, ``every`` in all; or (0, 0)."""
    if "image_grid_thw" in inputs:
        config: Any = model.config
        merge = config.vision_config.spatial_merge_size
        start = 0
        for time, height, width in inputs["image_grid_thw"].tolist():
            rows, columns = height // merge, width // merge
            if start == before:
                return (rows, columns) if time == 1 else (0, 0)
            start += time * rows * columns
        return 0, 0
    pixels = inputs.get("pixel_values")
    pictures = 1 if pixels is None else int(np.prod(pixels.shape[:-3]))  # or tiles of them
    return (isqrt(count), isqrt(count)) if count * pictures == every else (0, 0)


def seen_by_model(
    inputs: Mapping[str, Any], processor: Any, image: Any, *, number: int = 0
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture as the model saw it, cropped and resized, uint8 [height, width, 3].

    Args:
        inputs: what the processor returned.
        processor: knows how pixels were normalised.
        image: the picture as it was, a `PIL.Image.Image`.
        number: which of the pictures in ``inputs`` it is.
    """
    pixels = inputs["pixel_values"]
    if pixels.ndim != 4:  # already cut into patches: the whole picture was used
        return np.asarray(image.convert("RGB"))
    normal = pixels[number].float().cpu().numpy().transpose(1, 2, 0)
    mean, deviation = (np.asarray(values) for values in _normalisation(processor.image_processor))
    restored: np.ndarray[Any, Any] = np.clip((normal * deviation + mean) * 255.0, 0, 255).round().astype(np.uint8)
    return restored


def _normalisation(image_processor: Any) -> tuple[Any, Any]:
    if not image_processor.do_normalize:
        return [0.0] * 3, [1.0] * 3
    return image_processor.image_mean, image_processor.image_std
