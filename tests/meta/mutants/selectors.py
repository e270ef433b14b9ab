"""A selector of a user's own, and what may go wrong with it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from kvpolicy import CacheView, Scored, Selection, Step

from ._mutant import BY_CHANCE, Mutant

__all__ = ["MUTANTS", "TWINS"]


@dataclass(frozen=True)
class Best:
    """The oldest rows of each head, and the best of the others; ties go to the later arrival."""

    first: int = 1

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        view, xp = scored.view, scored.view.xp
        quota = xp.asarray(quota, dtype=xp.int64, device=view.positions.device)
        stays = self.protected(view, step)
        others = self.others(view, stays)
        place = self.places(xp, view.positions, scored.scores, xp.astype(others, xp.int64))
        return Selection(stays | (others & (place < self.left(view, quota, stays)[..., None])))

    def protected(self, view: CacheView, step: Step) -> Any:
        return view.valid & (step.ops.arrival_rank(view) < self.first)

    def others(self, view: CacheView, stays: Any) -> Any:
        return view.valid & ~stays

    def left(self, view: CacheView, quota: Any, stays: Any) -> Any:
        return quota - number(view, stays)

    def places(self, xp: Any, *keys: Any) -> Any:
        return in_order(xp, *keys)[1]


def in_order(xp: Any, *keys: Any) -> tuple[Any, Any]:
    """Slots from the best to the worst by the last key, ties by the one before it, and the place of each slot."""
    order = xp.argsort(keys[0], axis=-1, stable=True)
    for key in keys[1:]:
        again = xp.argsort(xp.take_along_axis(key, order, axis=-1), axis=-1, stable=True)
        order = xp.take_along_axis(order, again, axis=-1)
    order = xp.flip(order, axis=-1)
    return order, xp.argsort(order, axis=-1)


def number(view: CacheView, mask: Any) -> Any:
    """How many are marked, int64 [B, H]."""
    return view.xp.sum(view.xp.astype(mask, view.xp.int64), axis=-1)


class ArgsortAsRank(Best):
    """The slots in order, as argsort gives them, are taken for the place of each slot."""

    def places(self, xp: Any, *keys: Any) -> Any:
        return in_order(xp, *keys)[0]


class OneMoreFirst(Best):
    """``<=`` for ``<``: the protected prefix is one row longer than the quota is charged for."""

    def protected(self, view: CacheView, step: Step) -> Any:
        return view.valid & (step.ops.arrival_rank(view) <= self.first)

    def left(self, view: CacheView, quota: Any, stays: Any) -> Any:
        return quota - self.first


class OneMoreOther(Best):
    """The quota is off by one: the row at place k stays too."""

    def left(self, view: CacheView, quota: Any, stays: Any) -> Any:
        return quota - number(view, stays) + 1


class OneFewer(Best):
    """A quota of k keeps k - 1 rows: one is set aside for the token to come."""

    def left(self, view: CacheView, quota: Any, stays: Any) -> Any:
        return quota - number(view, stays) - 1


class PaddingKept(Best):
    """Padding competes with the rows."""

    def others(self, view: CacheView, stays: Any) -> Any:
        return ~stays


class TiesByMemory(Best):
    """Of rows with equal scores the one that lies further back in memory stays."""

    def places(self, xp: Any, *keys: Any) -> Any:
        return in_order(xp, *keys[1:])[1]


class FirstSlots(Best):
    """The first slots are taken for the oldest rows."""

    def protected(self, view: CacheView, step: Step) -> Any:
        return view.valid & (view.xp.arange(view.shape[2], device=view.positions.device) < self.first)


class FirstPositions(Best):
    """Positions are counted from the first padding token, not from the first token of the batch row."""

    def protected(self, view: CacheView, step: Step) -> Any:
        return view.valid & (view.positions < self.first)


class Worst(Best):
    """The sort is the wrong way round: the lowest scores stay."""

    def places(self, xp: Any, positions: Any, scores: Any, others: Any) -> Any:
        return in_order(xp, positions, -scores, others)[1]


class Loudest(Best):
    """Scores are compared by their absolute value."""

    def places(self, xp: Any, positions: Any, scores: Any, others: Any) -> Any:
        return in_order(xp, positions, xp.abs(scores), others)[1]


class CacheDtype(Best):
    """Scores are compared in the dtype of the cache, where different ones become the same."""

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        rounded = scored.view.xp.astype(scored.scores, scored.view.keys.dtype)
        return super().select(Scored(scored.view, rounded), quota, step)


class AllThatTie(Best):
    """A threshold, the k-th best score, keeps every row that ties with it."""

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        view, xp = scored.view, scored.view.xp
        quota = xp.asarray(quota, dtype=xp.int64, device=view.positions.device)
        stays = super().select(scored, quota, step).keep
        least = xp.min(xp.where(stays, scored.scores, xp.inf), axis=-1, keepdims=True)
        return Selection(view.valid & (stays | ((scored.scores >= least) & (quota > 0)[..., None])))


class NoneThatTies(Best):
    """A threshold, the best score that leaves, drops every row that ties with it."""

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        view, xp = scored.view, scored.view.xp
        stays, first = super().select(scored, quota, step).keep, self.protected(view, step)
        most = xp.max(xp.where(view.valid & ~stays, scored.scores, -xp.inf), axis=-1, keepdims=True)
        return Selection(first | (stays & ((scored.scores > most) | xp.all(stays | ~view.valid, axis=-1)[..., None])))


class WritesScores(Best):
    """Scores of padding are overwritten where they lie."""

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        scored.scores[~scored.view.valid] = -1.0
        return super().select(scored, quota, step)


class IntegerMask(Best):
    """The mask is one of integers."""

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        return Selection(scored.view.xp.astype(super().select(scored, quota, step).keep, scored.view.xp.int64))


class MaskOfOneHead(Best):
    """The mask is that of the first head only."""

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        return Selection(super().select(scored, quota, step).keep[:, 0])


class EvenlySpaced(Best):
    """Rows at even distances: with one row more other rows stay."""

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        view, xp = scored.view, scored.view.xp
        rank, held = step.ops.arrival_rank(view), number(view, view.valid)[..., None]
        quota = xp.asarray(quota, dtype=xp.int64, device=view.positions.device)[..., None]
        held = xp.where(held > 0, held, xp.ones_like(held))
        return Selection(view.valid & (((rank * quota) // held != ((rank + 1) * quota) // held) | (quota >= held)))


class HalfIsSafe(Best):
    """A share of the table, not of the quota, is protected: of what has stayed only a share stays again."""

    def protected(self, view: CacheView, step: Step) -> Any:
        return view.valid & (step.ops.arrival_rank(view) < (number(view, view.valid)[..., None] + 1) // 2)


class SharedDice(Best):
    """Ties are broken by the generator that the whole process shares."""

    def places(self, xp: Any, positions: Any, scores: Any, others: Any) -> Any:
        dice = [random.random() for _ in range(positions.shape[2])]
        dice = xp.broadcast_to(xp.asarray(dice, device=positions.device), positions.shape)
        return in_order(xp, dice, scores, others)[1]


@dataclass
class Remembers:
    """The quota of the first request is used for every later one."""

    first: int = 1

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        if not hasattr(self, "_quota"):
            self._quota = {}
        known = self._quota.setdefault((scored.view.layer, scored.view.shape[:2]), quota)
        return Best(self.first).select(scored, known, step)


@dataclass
class Scratch:
    """What is kept for a moment is kept in the selector, which other threads use too."""

    first: int = 1

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        self._scored = scored
        time.sleep(5e-3)  # a kernel runs, and other threads with it
        return Best(self.first).select(self._scored, quota, step)


@dataclass
class CountsCalls:
    """A counter of its own for the log."""

    calls: int = 0

    def select(self, scored: Scored, quota: Any, step: Step) -> Selection:
        self.calls += 1
        return Best().select(scored, quota, step)


TWINS = (Best(), Best(first=3))
BOTH = ("numpy", "torch")
MUTANTS = (
    Mutant(
        "argsort-as-rank",
        ArgsortAsRank,
        law="dominance",
        backends=BOTH,
        also=("budget_exact",),
    ),
    Mutant("the-worst-stay", Worst, law="monotone_score", backends=BOTH),
    Mutant("the-loudest-stay", Loudest, law="monotone_score"),
    Mutant("scores-in-cache-dtype", CacheDtype, law="dtype_stable", sizes={"scores": "close"}),
    Mutant("prefix-off-by-one", OneMoreFirst, law="within_quota"),
    Mutant("quota-off-by-one", OneMoreOther, law="within_quota"),
    Mutant("keeps-all-ties", AllThatTie, law="within_quota", backends=("numpy",)),
    Mutant("drops-all-ties", NoneThatTies, law="budget_exact"),
    Mutant("one-row-too-few", OneFewer, law="budget_exact", backends=("numpy",)),
    Mutant("padding-kept", PaddingKept, law="no_padding", backends=BOTH),
    Mutant("ties-by-memory", TiesByMemory, law="slot_equivariant", backends=("numpy",)),
    Mutant("slots-as-positions", FirstSlots, law="slot_equivariant"),
    Mutant("first-positions", FirstPositions, law="padding_invariant"),
    Mutant("writes-scores", WritesScores, law="unmutated"),
    Mutant("integer-mask", IntegerMask, law="well_formed"),
    Mutant("mask-of-one-head", MaskOfOneHead, law="well_formed", backends=("numpy",)),
    Mutant("evenly-spaced", EvenlySpaced, law="monotone_budget"),
    Mutant("half-is-safe", HalfIsSafe, law="idempotent"),
    Mutant("shared-dice", SharedDice, law="deterministic", also=BY_CHANCE),
    Mutant("remembers-the-quota", Remembers, law="request_isolated", sizes={"quota": None}),
    Mutant("scratch-attribute", Scratch, law="thread_safe"),
    Mutant("counts-its-calls", CountsCalls, law="immutable"),
)
