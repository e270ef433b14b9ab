"""Which tokens of a prompt belong to a word before them: the names of a code book, and the tokens of each picture."""

from __future__ import annotations

import numpy as np
from kvpolicy_bench.pictures import Pictures
from kvpolicy_bench.words import IMAGE, NONE
from kvpolicy_bench.world import World

from .packing import PROMPT, Rows

__all__ = ["bound"]


def bound(world: World, rows: Rows, pictures: Pictures) -> np.ndarray:
    """Tokens that are to carry words, int64 [4, K]: their indices into the flattened rows, and up to three words each.

    In a code book, a name carries the code right before it, and itself. Of several pictures, each token carries the
    ordinal before its picture, its object's name, and its cell. `NONE` stands for no word.
    """
    ids, prompt = rows.ids, rows.block == PROMPT
    before = np.roll(ids, 1, axis=1)  # what comes round to the first column is no code
    named = np.flatnonzero(prompt & np.isin(ids, world.name_ids) & np.isin(before, world.code_ids))
    entries = np.stack([named, before.ravel()[named], ids.ravel()[named], np.full(len(named), NONE)])

    here = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    ordinal = np.maximum.accumulate(np.where(prompt & np.isin(ids, world.ordinal_ids), here, -1), axis=1)
    owner = np.where(ordinal >= 0, np.take_along_axis(ids, np.maximum(ordinal, 0), axis=1), NONE)
    names = world.name_ids[pictures.objects[:, world.cell_of_token]].ravel()
    cells = np.tile(world.cell_ids[world.cell_of_token], len(pictures))
    shown = np.stack([np.flatnonzero(ids == IMAGE), owner[ids == IMAGE], names, cells])
    return np.concatenate([entries, shown[:, shown[1] != NONE]], axis=1)
