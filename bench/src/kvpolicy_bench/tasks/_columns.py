"""Questions and answers are built a batch at a time, column by column; a column may be empty in some rows."""

from __future__ import annotations

import numpy as np

from ..words import NONE
from ..world import World

__all__ = ["beside", "one_of", "told"]


def beside(world: World, count: int, *parts: str | np.ndarray) -> np.ndarray:
    """Word ids [count, words]: texts are the same in every row, arrays [count] or [count, words] are not."""
    columns = []
    for part in parts:
        if isinstance(part, str):
            columns.append(np.tile(world.ids(part), (count, 1)))
        else:
            columns.append(part.reshape(count, -1))
    return np.concatenate(columns, axis=1)


def one_of(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The column of one true entry of each row, int64 [B]; each true entry is as likely as another."""
    column: np.ndarray = np.argmax(mask * (1.0 - rng.random(mask.shape)), axis=1)
    return column


def told(world: World, objects: np.ndarray) -> np.ndarray:
    """``a1 cat a3 dog`` for objects [B, cells], empty cells left out: word ids [B, 2 * cells]."""
    words = np.stack([np.broadcast_to(world.cell_ids, objects.shape), world.name_ids[objects]], axis=-1)
    return np.where(objects[..., None] < 0, NONE, words).reshape(len(objects), -1)
