"""A recaller of a user's own, and what may go wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpolicy import CacheView, Step

from ._mutant import Mutant

__all__ = ["MUTANTS", "TWINS"]


@dataclass(frozen=True)
class AskedFor:
    """The released rows that the latest query asks for most."""

    rows: int = 2

    def recall(self, archive: CacheView, step: Step) -> Any:
        quota = np.full(archive.shape[:2], self.rows)
        return step.ops.top_k(self.asked(archive, step), quota, archive)

    def asked(self, archive: CacheView, step: Step) -> Any:
        xp, (batch, heads, _) = archive.xp, archive.shape
        query = xp.astype(step.latest(1).queries[:, :, -1], xp.float64)
        query = xp.mean(xp.reshape(query, (batch, heads, -1, query.shape[-1])), axis=2)
        return xp.sum(xp.astype(archive.keys, xp.float64) * query[:, :, None, :], axis=-1)


class EmptySlotsToo(AskedFor):
    """All that is asked for at all, be it a row or an empty slot."""

    def recall(self, archive: CacheView, step: Step) -> Any:
        return self.asked(archive, step) > 0


class MaskOfNumbers(AskedFor):
    """The mask is one of integers."""

    def recall(self, archive: CacheView, step: Step) -> Any:
        return archive.xp.astype(super().recall(archive, step), archive.xp.int64)


class BySlot(AskedFor):
    """The first slots of the archive."""

    def recall(self, archive: CacheView, step: Step) -> Any:
        slots = archive.xp.arange(archive.shape[2], device=archive.positions.device)
        return archive.valid & (slots < self.rows)


class EverySecondPosition(AskedFor):
    """Every second position, with padding counted."""

    def recall(self, archive: CacheView, step: Step) -> Any:
        return archive.valid & (archive.positions % 2 == 0)


class FirstHeadAsks(AskedFor):
    """All heads go by what the query of the first one asks for."""

    def asked(self, archive: CacheView, step: Step) -> Any:
        xp = archive.xp
        query = xp.astype(step.latest(1).queries[:, :1, -1], xp.float64)
        return xp.sum(xp.astype(archive.keys, xp.float64) * query[:, :, None, :], axis=-1)


class LeavesAMark(AskedFor):
    """Rows of the archive are counted down where they lie."""

    def recall(self, archive: CacheView, step: Step) -> Any:
        count = archive.columns["count"].data
        count -= 1
        return super().recall(archive, step)


TWINS = (AskedFor(),)
MUTANTS = (
    Mutant("recalls-empty-slots", EmptySlotsToo, law="no_padding"),
    Mutant("recalls-by-number", MaskOfNumbers, law="well_formed", backends=("numpy",)),
    Mutant("recalls-by-slot", BySlot, law="slot_equivariant"),
    Mutant("recalls-by-position", EverySecondPosition, law="padding_invariant", backends=("numpy",)),
    Mutant("first-head-asks", FirstHeadAsks, law="head_equivariant"),
    Mutant("marks-the-archive", LeavesAMark, law="unmutated"),
)
