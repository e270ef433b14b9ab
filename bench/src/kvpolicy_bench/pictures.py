"""A batch of pictures as numbers: all that a drawing needs, so that a GPU can draw the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .assets import PHOTO, photos
from .world import World

__all__ = ["Pictures"]


@dataclass(frozen=True)
class Pictures:
    """N pictures.

    Attributes:
        objects: int64 [N, cells], the number of the emoji in each cell, -1 for none.
        photo: int64 [N], the photograph behind them, -1 for a plain colour.
        colour: float32 [N, 3], the plain colour, 0 to 255.
        crop: int64 [N, 3], top, left and side of the square that is cut from the photograph.
        gain: float32 [N], how bright the photograph is.
        mirror: bool [N], left and right exchanged, in what lies behind the emoji.
        upside: bool [N], the same for top and bottom.
        shape: int64 [N], an image of Easy-VQA, which then is the whole background, -1 for none.
    """

    objects: np.ndarray
    photo: np.ndarray
    colour: np.ndarray
    crop: np.ndarray
    gain: np.ndarray
    mirror: np.ndarray
    upside: np.ndarray
    shape: np.ndarray

    def __len__(self) -> int:
        return len(self.photo)

    @classmethod
    def behind(cls, world: World, objects: np.ndarray, on_photo: np.ndarray, rng: np.random.Generator) -> Pictures:
        """Draw the backgrounds of pictures: photographs where asked, plain light colours elsewhere.

        Args:
            world: how large a picture is.
            objects: int64 [N, cells].
            on_photo: bool [N].
            rng: where the rest comes from.
        """
        count = len(objects)
        side = rng.integers(world.side, PHOTO + 1, count)
        left_over = PHOTO - side + 1
        return cls(
            objects=objects,
            photo=np.where(on_photo, rng.integers(len(photos()), size=count), -1),
            colour=rng.integers(150, 256, (count, 3)).astype(np.float32),
            crop=np.stack([rng.integers(left_over), rng.integers(left_over), side], axis=1),
            gain=rng.uniform(0.7, 1.2, count).astype(np.float32),
            mirror=rng.random(count) < 0.5,
            upside=np.zeros(count, bool),
            shape=np.full(count, -1),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Pictures]) -> Pictures:
        """All pictures of the parts, in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))
