"""The batch of a step follows from the seed and the step alone: a run that is resumed goes on with the same ones."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from kvpolicy_bench.pictures import Pictures
from kvpolicy_bench.tasks import TASKS
from kvpolicy_bench.words import EOS, IMAGE
from kvpolicy_bench.world import World

from .binding import bound
from .packing import Rows, pack
from .plan import Mix, plan

__all__ = ["HELD_OUT", "LABELS", "Batch", "Recipe", "batches", "make_batch"]

LABELS = (*(task.label for task in TASKS), "at/crowd")
HELD_OUT = 1_000_003  # added to the seed: scenes that training never sees


@dataclass(frozen=True)
class Recipe:
    """What the batches of a run follow from.

    Attributes:
        world: the world.
        mix: how many scenes of each kind.
        seed: the seed of the run.
        easy: for so many steps, grids may be filled in part, and code books short.
    """

    world: World
    mix: Mix
    seed: int
    easy: int


@dataclass(frozen=True)
class Batch:
    """One part of a step: packed rows, their pictures, and what is to be learned from them.

    Attributes:
        rows: the packed rows.
        pictures: the pictures in the order of the rows.
        target: int64 [T], the tokens to predict, as indices into the flattened rows.
        weight: float32 [T]; over all parts of a step they add up to 1, and every task has the same share.
        ends: int64 [Q], the last token of every answer, as an index into ``target``.
        spots: int64 [S], where the image tokens are, as indices into the flattened rows.
        bound: int64 [4, K], tokens that are to carry words, as indices into the flattened rows, and the words.
        emoji: the share of the step's emoji pictures that are in this part.
    """

    rows: Rows
    pictures: Pictures
    target: np.ndarray
    weight: np.ndarray
    ends: np.ndarray
    spots: np.ndarray
    bound: np.ndarray
    emoji: float


def make_batch(recipe: Recipe, step: int) -> list[Batch]:
    """The parts of a step."""
    rng = np.random.default_rng([recipe.seed, step])
    world = recipe.world
    parts = []
    for shares in plan(recipe.mix, step < recipe.easy, rng):
        drawn, asked = [], []
        for share in shares:
            scenes = share.situation.draw(world, share.rows, rng)
            drawn.append(scenes.pictures)
            asked.append((scenes, [(LABELS.index(task.label), task.ask(world, scenes, rng)) for task in share.asked]))
        parts.append((pack(world, asked), Pictures.concatenate(drawn)))
    tokens = sum(np.bincount(rows.task[rows.task >= 0], minlength=len(LABELS)) for rows, _ in parts)
    weight = 1.0 / (np.maximum(tokens, 1) * np.count_nonzero(tokens))
    emoji = [np.count_nonzero(pictures.shape < 0) for _, pictures in parts]
    made = []
    for (rows, pictures), share in zip(parts, emoji, strict=True):
        target = np.flatnonzero(rows.task >= 0)
        wanted = weight[rows.task.ravel()[target]].astype(np.float32)
        ends = np.flatnonzero(rows.ids.ravel()[target] == EOS)
        spots = np.flatnonzero(rows.ids == IMAGE)
        made.append(
            Batch(rows, pictures, target, wanted, ends, spots, bound(world, rows, pictures), share / sum(emoji))
        )
    return made


def batches(recipe: Recipe, first: int, past: int, workers: int) -> Iterator[list[Batch]]:
    """The batches of steps ``first`` to ``past``, made ahead by so many processes; 0 makes them here, one by one."""
    if not workers:
        yield from (make_batch(recipe, step) for step in range(first, past))
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        ahead: deque[Future[list[Batch]]] = deque()
        for step in range(first, past):
            while len(ahead) < 3 * workers and step + len(ahead) < past:
                ahead.append(pool.submit(make_batch, recipe, step + len(ahead)))
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
