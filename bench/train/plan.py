"""What one training step asks: how many scenes of each kind, and which questions of every scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from kvpolicy_bench.scenes import Situation
from kvpolicy_bench.situations import Book, Crowd, EasyVQA, Grid, Photo, Several
from kvpolicy_bench.tasks import (
    At,
    Count,
    Decode,
    Describe,
    Find,
    PictureAt,
    PictureDescribe,
    PictureWhere,
    Places,
    Published,
    Recite,
    Row,
    Task,
    Where,
)

__all__ = ["FULL", "TINY", "Mix", "Share", "plan"]


@dataclass(frozen=True)
class Mix:
    """Scenes of each kind in a step; of several pictures, the pictures are counted.

    Attributes:
        times: how often the short questions are asked, in units of what makes tiny prompts of about one length.
    """

    grid: int
    photo: int
    crowd: int
    book: int
    easy_vqa: int
    several: int
    times: int


@dataclass(frozen=True)
class Share:
    """So many scenes of a situation, each asked all of these."""

    situation: Situation
    rows: int
    asked: tuple[Task, ...]


FULL = Mix(grid=32, photo=20, crowd=24, book=36, easy_vqa=48, several=96, times=2)
TINY = Mix(grid=4, photo=3, crowd=3, book=6, easy_vqa=2, several=18, times=1)


def plan(mix: Mix, easy: bool, rng: np.random.Generator) -> Sequence[Sequence[Share]]:
    """Two parts of a step: prompts with one picture, and prompts with several, equally many each.

    The number of questions is such that all scenes of a part make prompts of about one length. The long answers teach
    the most: every word of `Describe` looks up a cell, of `Places` a name, of `Recite` an entry of the book, of
    `PictureDescribe` a cell of the right picture.
    """
    grid, book = Grid(2 if easy else None), Book(1 if easy else None)
    photo, crowd, published = Photo(), Crowd(), EasyVQA("train")
    n, pictures = mix.times, int(rng.integers(2, 5))
    several = Several(pictures)
    one = (
        Share(grid, mix.grid, (Describe(grid), *[Places(grid)] * 3, Row(grid), *[At(grid)] * 3, *[Where(grid)] * 3)),
        Share(photo, mix.photo, (Describe(photo), *[At(photo)] * 7 * n, *[Where(photo)] * 7 * n)),
        Share(crowd, mix.crowd, (*[Count(crowd)] * 7 * n, *[At(crowd)] * 4 * n)),
        Share(book, mix.book, (Recite(book), *[Decode(book)] * 6, *[Find(book)] * 6)),
        Share(published, mix.easy_vqa, (Published(published),) * 12 * n),
    )
    asked = (*[PictureDescribe(several)] * 2, *[PictureAt(several)] * 5 * n, *[PictureWhere(several)] * 5 * n)
    return one, (Share(several, mix.several // pictures, asked),)
