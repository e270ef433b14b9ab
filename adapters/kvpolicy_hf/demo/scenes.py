"""The demo's little world: emoji on a 4 x 4 grid or scattered over a photograph, and questions about them.

Two kinds of picture, because a policy can only be judged where information is spread out *and* where it is not:

- ``grid``: an object in all sixteen cells, every image token matters;
- ``photo``: one to four objects on a real photograph, most image tokens do not.

A password stands *before* the image, so that a policy which only looks at recent rows has something to forget. An
answer first repeats what it was asked about ("b2 cat"): its first token comes out of the prefill, which still attends
to every row, and what is to be found out must come from the compressed cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

ASSETS = Path(__file__).parent / "assets"
SIDE, TILE, GRID = 128, 32, 4  # pixels of the image, pixels of an object, cells per side
CELLS = tuple(f"{row}{column}" for row in "abcd" for column in "1234")
NOTHING = "nothing"
NAMES = tuple(
    "cat dog pig cow frog bear tiger monkey bird fish snake turtle bee apple banana lemon grapes corn pizza egg "
    "cake coffee car bus bike rocket boat train key bell book star moon heart fire crown guitar hammer mushroom "
    "umbrella".split()
)

Kind = Literal["grid", "photo"]
Task = Literal["at", "where", "row", "password"]
TASKS: tuple[Task, ...] = ("at", "where", "row", "password")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene and its only right answer."""

    task: Task
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: which object lies in each of the sixteen cells (``nothing`` for none), and the password."""

    kind: Kind
    objects: tuple[str, ...]
    password: str
    image: np.ndarray  # uint8 [128, 128, 3]

    def prompt(self, question: Question) -> str:
        """The text that goes into the processor: password, image, question."""
        return f"password {self.password} . <image> {question.text}"

    def ask(self, task: Task, rng: np.random.Generator) -> Question:
        """Draw one question of the given kind."""
        if task == "at":
            cell = int(rng.integers(len(CELLS)))
            if self.kind == "photo" and rng.random() < 0.7:  # mostly ask about a cell that holds something
                cell = int(rng.choice(self._taken()))
            return Question(task, f"what is at {CELLS[cell]}", f"{CELLS[cell]} {self.objects[cell]}")
        if task == "where":
            cell = int(rng.choice(self._taken()))
            return Question(task, f"where is the {self.objects[cell]}", f"{self.objects[cell]} {CELLS[cell]}")
        if task == "row":
            row = int(rng.choice(self._taken())) // GRID
            cells = range(row * GRID, (row + 1) * GRID)
            told = " ".join(f"{CELLS[cell]} {self.objects[cell]}" for cell in cells)
            return Question(task, f"read row {'abcd'[row]}", told)
        return Question(task, "what is the password", f"password {self.password}")

    def _taken(self) -> list[int]:
        return [cell for cell, name in enumerate(self.objects) if name != NOTHING]


def draw(rng: np.random.Generator, kind: Kind) -> Scene:
    """Draw a new scene. The same generator state gives the same scene."""
    count = len(CELLS) if kind == "grid" else int(rng.integers(1, 5))
    names = rng.choice(len(NAMES), size=count + 1, replace=False)
    objects = [NOTHING] * len(CELLS)
    for cell, name in zip(rng.permutation(len(CELLS))[:count], names[1:], strict=True):
        objects[cell] = NAMES[name]
    image = _plain(rng) if kind == "grid" else _photo(rng)
    for cell, name in enumerate(objects):
        if name != NOTHING:
            _paste(image, cell, atlas()[NAMES.index(name)])
    return Scene(kind, tuple(objects), NAMES[names[0]], image.astype(np.uint8))


@cache
def atlas() -> np.ndarray:
    """The object tiles, float32 [40, 32, 32, 4] with alpha in 0..1."""
    with Image.open(ASSETS / "atlas.png") as picture:
        strip = np.asarray(picture.convert("RGBA"), dtype=np.float32)
    tiles = strip.reshape(TILE, len(NAMES), TILE, 4).transpose(1, 0, 2, 3).copy()
    tiles[..., 3] /= 255.0
    return tiles


@cache
def photographs() -> tuple[Image.Image, ...]:
    """The background photographs, in the order of their file names."""
    pictures = []
    for path in sorted((ASSETS / "photos").glob("*.jpg")):
        with Image.open(path) as picture:
            pictures.append(picture.convert("RGB"))
    return tuple(pictures)


def _plain(rng: np.random.Generator) -> np.ndarray:
    colour = rng.integers(150, 256, size=3)
    return np.broadcast_to(colour.astype(np.float32), (SIDE, SIDE, 3)).copy()


def _photo(rng: np.random.Generator) -> np.ndarray:
    picture = photographs()[rng.integers(len(photographs()))]
    side = int(rng.integers(SIDE, min(picture.size) + 1))
    left = int(rng.integers(picture.width - side + 1))
    top = int(rng.integers(picture.height - side + 1))
    crop = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(crop, dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    lit: np.ndarray = np.clip(pixels * rng.uniform(0.7, 1.2), 0, 255)
    return lit


def _paste(image: np.ndarray, cell: int, tile: np.ndarray) -> None:
    row, column = divmod(cell, GRID)
    spot = image[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
    spot += tile[..., 3:] * (tile[..., :3] - spot)
