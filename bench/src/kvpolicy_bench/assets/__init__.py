"""The vendored pictures as arrays. Where they come from, and under which licences: ``NOTICE`` beside this file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

__all__ = ["FOLDER", "PHOTO", "SHAPE", "TILE", "Shapes", "Split", "Style", "atlas", "photos", "shapes"]

FOLDER = Path(__file__).parent
TILE, PHOTO, SHAPE = 32, 384, 64  # pixels of an emoji, of a photograph, of an Easy-VQA image

Style = Literal["google", "twitter"]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Shapes:
    """One split of Easy-VQA.

    Attributes:
        images: uint8 [images, 64, 64, 3].
        questions: every question once, lower case, without its question mark.
        answers: every answer once.
        asked: int16 [asked, 3]: image, question, answer; in the order of the images.
    """

    images: np.ndarray
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    asked: np.ndarray


@cache
def atlas(style: Style) -> np.ndarray:
    """The emoji in the order of `NAMES`, float32 [names, 32, 32, 4], alpha in 0..1."""
    with Image.open(FOLDER / f"{style}.png") as picture:
        sheet = np.asarray(picture.convert("RGBA"), np.float32)
    rows, columns = sheet.shape[0] // TILE, sheet.shape[1] // TILE
    tiles = sheet.reshape(rows, TILE, columns, TILE, 4).swapaxes(1, 2).reshape(-1, TILE, TILE, 4).copy()
    tiles[..., 3] /= 255.0
    return tiles


@cache
def photos() -> np.ndarray:
    """The background photographs in the order of their file names, uint8 [photos, 384, 384, 3]."""
    pictures = []
    for path in sorted((FOLDER / "photos").glob("*.jpg")):
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return np.stack(pictures)


@cache
def shapes(split: Split) -> Shapes:
    """One split of Easy-VQA, as published."""
    with np.load(FOLDER / f"easy_vqa_{split}.npz") as file:
        questions, answers = tuple(map(str, file["questions"])), tuple(map(str, file["answers"]))
        return Shapes(file["images"], questions, answers, file["asked"])
