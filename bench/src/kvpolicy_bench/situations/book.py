"""A code book beside a picture: the text must survive, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ..pictures import Pictures
from ..scenes import Scenes
from ..words import IMAGE, NONE
from ..world import World
from ._chance import distinct, shuffled

__all__ = ["Book"]


@final
@dataclass(frozen=True, slots=True)
class Book:
    """A picture of a few emoji, and a book that gives each of them, and others, a code word.

    The book stands before the picture or after it.

    Attributes:
        least: the fewest entries; ``None`` is half of ``world.pairs``, the most. Training begins with fewer.
    """

    least: int | None = None
    group: str = "book"

    def draw(self, world: World, count: int, rng: np.random.Generator) -> Scenes:
        """Draw so many scenes."""
        pairs = world.pairs
        names = distinct(count, len(world.names), pairs, rng)
        codes = distinct(count, len(world.codes), pairs, rng)
        entries = rng.integers(self.least or pairs // 2, pairs + 1, (count, 1))
        here = rng.integers(1, np.minimum(entries, pairs // 2) + 1)  # objects in the picture
        objects = np.full((count, world.grid**2), -1)
        objects[:, :pairs] = np.where(np.arange(pairs) < here, names, -1)
        book = np.where((np.arange(pairs) < entries)[..., None], np.stack([codes, names], axis=-1), -1)
        book = np.take_along_axis(book, np.argsort(rng.random((count, pairs)), axis=1)[..., None], axis=1)
        pictures = Pictures.behind(world, shuffled(objects, rng), rng.random(count) < 0.5, rng)
        return Scenes(pictures, _around(world, book, rng.random(count) < 0.5), book)


def _around(world: World, book: np.ndarray, before: np.ndarray) -> np.ndarray:
    stop = np.full(book.shape[:2], world.index[";"])
    words = np.stack([world.code_ids[book[..., 0]], world.name_ids[book[..., 1]], stop], axis=-1)
    words = np.where(book[..., :1] < 0, NONE, words).reshape(len(book), -1)
    words = np.concatenate([np.broadcast_to(world.ids("code :"), (len(book), 2)), words], axis=1)
    image = np.full((len(book), 1), IMAGE)
    return np.concatenate(
        [np.where(before[:, None], words, NONE), image, np.where(before[:, None], NONE, words)], axis=1
    )
