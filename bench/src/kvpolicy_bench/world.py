"""How large the world is: cells, emoji and codes, and the ids of their words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .assets import TILE
from .words import CODES, GLUE, NAMES, NONE, ORDINALS, SPECIAL, UNK

__all__ = ["FULL", "TINY", "World"]


@dataclass(frozen=True)
class World:
    """A square of cells, one emoji wide each, and the words to speak of it.

    Attributes:
        grid: cells per side; a picture is ``32 * grid`` pixels square.
        names: the emoji that occur.
        codes: the code words that occur.
        pairs: the most code words that a code book explains.
        patch: pixels per side of what becomes one image token.
    """

    grid: int = 8
    names: tuple[str, ...] = NAMES
    codes: tuple[str, ...] = CODES
    pairs: int = 32
    patch: int = 16

    @property
    def side(self) -> int:
        """Pixels per side of a picture."""
        return TILE * self.grid

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture."""
        return (self.side // self.patch) ** 2

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """The labels of the cells in reading order: a1, a2, … h8."""
        return tuple(f"{row}{column + 1}" for row in "abcdefgh"[: self.grid] for column in range(self.grid))

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word; its place is its id."""
        return (*SPECIAL, *GLUE, *ORDINALS, *self.cells, *self.names, *self.codes)

    @cached_property
    def index(self) -> dict[str, int]:
        """The id of every word."""
        return {word: number for number, word in enumerate(self.vocabulary)}

    def ids(self, text: str) -> np.ndarray:
        """Word ids, int64 [words]; the same as the tokenizer's."""
        return np.array([self.index.get(word, UNK) for word in text.split()], np.int64)

    def text(self, ids: Iterable[int]) -> str:
        """The words of ids, without those that are `NONE`."""
        return " ".join(self.vocabulary[number] for number in ids if number != NONE)

    @cached_property
    def cell_ids(self) -> np.ndarray:
        """int64 [cells]."""
        return self.ids(" ".join(self.cells))

    @cached_property
    def name_ids(self) -> np.ndarray:
        """int64 [names + 1]: the last, where -1 leads, is ``nothing``."""
        return self.ids(" ".join((*self.names, "nothing")))

    @cached_property
    def code_ids(self) -> np.ndarray:
        """int64 [codes]."""
        return self.ids(" ".join(self.codes))

    @cached_property
    def number_ids(self) -> np.ndarray:
        """int64 [17]: 0 to 16."""
        return self.ids(" ".join(map(str, range(17))))

    @cached_property
    def ordinal_ids(self) -> np.ndarray:
        """int64 [4]: one, two, three, four."""
        return self.ids(" ".join(ORDINALS))

    @cached_property
    def row_ids(self) -> np.ndarray:
        """int64 [grid]: the letters of the rows."""
        return self.ids(" ".join("abcdefgh"[: self.grid]))

    @cached_property
    def cell_of_token(self) -> np.ndarray:
        """int64 [image_tokens]: the cell that each image token lies in."""
        tokens, per_cell = self.side // self.patch, TILE // self.patch
        along = np.arange(tokens) // per_cell
        return (along[:, None] * self.grid + along).ravel()


FULL = World()
TINY = World(grid=4, names=NAMES[::4], codes=CODES[::4], pairs=8, patch=32)
