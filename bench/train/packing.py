"""Pack a prompt and all questions about it into one row: each question sees the prompt and itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from kvpolicy_bench.scenes import Scenes
from kvpolicy_bench.tasks import Asked
from kvpolicy_bench.words import BOS, EOS, IMAGE, NONE, PAD
from kvpolicy_bench.world import World

__all__ = ["FILL", "PROMPT", "Rows", "pack"]

PROMPT, FILL = -1, -2  # blocks that are no question
ROUND = 32  # lengths are rounded up, so that kernels see few of them, and aligned ones


@dataclass(frozen=True)
class Rows:
    """R packed rows of N tokens.

    Attributes:
        ids: int64 [R, N].
        block: int64 [R, N], the question that a token belongs to; -1 is the prompt, -2 fills the row up.
        position: int64 [R, N], where the token would be if its question were asked alone.
        task: int64 [R, N], the task that a token is an answer of, -1 for none.
    """

    ids: np.ndarray
    block: np.ndarray
    position: np.ndarray
    task: np.ndarray


def pack(world: World, shares: Sequence[tuple[Scenes, Sequence[tuple[int, Asked]]]]) -> Rows:
    """Rows for scenes and what is asked of them: pairs of a task's number with its questions and answers."""
    laid = [_lay(world, scenes, asked) for scenes, asked in shares]
    widest = max(part.shape[2] for part in laid)
    wide = np.concatenate(
        [np.pad(part, ((0, 0), (0, 0), (0, widest - part.shape[2])), constant_values=NONE) for part in laid], 1
    )
    # Words that a row lacks leave holes. A stable sort by "is a hole" closes them all at once.
    order = np.argsort(wide[0] == NONE, axis=1, kind="stable")
    length = int((wide[0] != NONE).sum(axis=1).max())
    length += -length % ROUND
    wide = np.pad(wide, ((0, 0), (0, 0), (0, max(0, length - widest))), constant_values=NONE)
    order = np.argsort(wide[0] == NONE, axis=1, kind="stable")[:, :length]
    ids, block, task = np.take_along_axis(wide, order[None], axis=2)
    hole = ids == NONE
    block, task = np.where(hole, FILL, block), np.where(hole, -1, task)
    return Rows(np.where(hole, PAD, ids), block, _positions(block), task)


def _lay(world: World, scenes: Scenes, asked: Sequence[tuple[int, Asked]]) -> np.ndarray:
    """Ids, block and task [3, B, L] of one situation's scenes, holes and all."""
    count = len(scenes)
    prompt = np.repeat(scenes.prompt, np.where(scenes.prompt[0] == IMAGE, world.image_tokens, 1), axis=1)
    parts = [_columns(np.full((count, 1), BOS), PROMPT, -1), _columns(prompt, PROMPT, -1)]
    for number, (task, (question, answer)) in enumerate(asked):
        parts += [_columns(question, number, -1), _columns(answer, number, task)]
        parts.append(_columns(np.full((count, 1), EOS), number, task))
    return np.concatenate(parts, axis=2)


def _columns(ids: np.ndarray, block: int, task: int) -> np.ndarray:
    return np.stack([ids, np.full_like(ids, block), np.full_like(ids, task)])


def _positions(block: np.ndarray) -> np.ndarray:
    """Counted from the row's start in the prompt, from the prompt's end in every question."""
    here = np.broadcast_to(np.arange(block.shape[1]), block.shape)
    begins = np.diff(block, axis=1, prepend=FILL) != 0
    within = here - np.maximum.accumulate(np.where(begins, here, 0), axis=1)
    prompt = (block == PROMPT).sum(axis=1, keepdims=True)
    return np.where(block == PROMPT, here, prompt + within)
