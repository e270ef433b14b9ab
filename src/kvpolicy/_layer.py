"""One layer of a session: its store, its archive, and what the host knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ._errors import CacheError
from ._heads import Heads
from ._plan import Plan
from ._policy import Pipeline
from ._protocols import Backend, Observer, Store, Windowed
from ._step import Phase, Queries
from ._types import Array, CacheView, Counts, HeadCounts, KeepMask, Rows
from .report import LayerReport

__all__ = ["Layer", "why_settled"]

_PER_ROW = ("seen", "prompt", "prompt_kept", "prompt_quota", "held", "left", "exceeded", "archived")


def _none() -> Counts:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Layer:
    """Host-side knowledge of one layer; counts are numpy: to decide whether to act nobody waits for the device.

    Counts by head are of all heads of the layer, so that all processes that share them decide alike; what is only
    reported is of this process.
    """

    store: Store
    heads: Heads
    archive: Store | None = None
    length: int = 0  # logical: tokens that have passed, padding included
    seen: Counts = field(default_factory=_none)  # [B]
    prompt: Counts = field(default_factory=_none)  # [B]
    prompt_kept: HeadCounts = field(default_factory=_none)  # [B, parts * H], as the following
    prompt_quota: HeadCounts = field(default_factory=_none)
    held: HeadCounts = field(default_factory=_none)
    archived: HeadCounts = field(default_factory=_none)
    left: Counts = field(default_factory=_none)  # [B], rows that plans took away here
    exceeded: Counts = field(default_factory=_none)  # [B], at the latest plan of the batch row
    recalled: int = 0
    merged: Any = None  # [B], of those that left; stays on the device until somebody asks
    limit: int | None = None  # slots that suffice while decoding, where the schedule is bounded
    row_bytes: int = 0  # one row of one head
    queries: Queries | None = None  # the latest ones, where a scorer wants them
    view: CacheView | None = None  # the table being attended over, from append to advance
    phase: Phase = Phase.PREFILL  # of the latest pass
    settled: int = 0  # tokens that cannot be taken back: what they did to other rows, or to these books, stays
    settled_by: tuple[str, Phase] = ("", Phase.PREFILL)  # what that was, and in which phase
    alike: bool = True  # all heads hold the same tokens in the same slots, see `CacheView.alike`
    on_trial: bool = False  # a copy, for tokens that may be taken back: nobody is told of its plans

    def begin(self, keys: Array, values: Array) -> None:
        """Take the shape of the first rows.

        Raises:
            CacheError: if the batch size changed within the request.
        """
        batch, heads = int(keys.shape[0]), self.heads.parts * int(keys.shape[1])
        if self.length == 0:
            for name in ("seen", "prompt", "left", "exceeded"):
                setattr(self, name, np.zeros(batch, np.int64))
            for name in ("prompt_kept", "prompt_quota", "held", "archived"):
                setattr(self, name, np.zeros((batch, heads), np.int64))
            per_head = keys.shape[-1] + values.shape[-1]
            self.row_bytes = int(per_head) * int(keys.nbytes // max(1, int(np.prod(keys.shape))))
        elif len(self.seen) != batch:
            raise CacheError(
                f"this cache holds {len(self.seen)} batch rows and was given {batch}. Hint: make a new PolicyCache "
                f"for each request."
            )

    def append(self, rows: Rows, tokens: Counts) -> CacheView:
        """New rows; ``tokens`` [B] of them are valid."""
        view = self.store.append(rows, limit=self.limit)
        self.length += int(rows.positions.shape[-1])
        self.seen = self.seen + tokens
        self.held = self.held + tokens[:, None]
        return replace(view, alike=True) if self.alike else view

    def settle(self, by: str) -> None:
        """No token that has passed so far can be taken back; the first reason of a pass is the one that is told."""
        if self.length > self.settled:
            self.settled, self.settled_by = self.length, (by, self.phase)

    def crop(self, length: int, ops: Backend) -> None:
        """Take back the tokens from position ``length`` on, which is at least what is settled.

        Every head still holds each of them as a row, because no plan has been carried out since they came.
        """
        view = self.store.view()
        later = view.valid & (view.positions >= length)
        gone = self._count(view, later, ops)
        self.length, self.seen, self.held = length, self.seen - gone[:, 0], self.held - gone
        self.prompt = np.minimum(self.prompt, self.seen)  # of a prompt that is not complete, or that nobody counts from
        self.store.apply(Plan(keep=view.valid & ~later), self.heads.own(self.held))

    def release(self, view: CacheView, plan: Plan, kept: HeadCounts, ops: Backend) -> None:
        """Rows that a plan neither keeps nor folds go to the archive; before it is applied."""
        assert self.archive is not None
        gone = view.valid & ~plan.keep
        if plan.into is not None:
            gone = gone & ~_folds(view, plan.into)
        count = self.held - kept if plan.into is None else self._count(view, gone, ops)
        if count.any():
            rows = ops.compact(self.store.view(), Plan(keep=gone), int(count.max()))
            self.archive.join(rows, self.heads.own(count))
            self.archived = self.archived + count

    def apply(self, view: CacheView, plan: Plan, kept: HeadCounts) -> None:
        """Carry out a plan that keeps ``kept`` rows of each head."""
        self.settle("planned")
        self.store.apply(plan, self.heads.own(kept))
        if plan.into is not None:
            folded = view.xp.sum(_folds(view, plan.into), axis=(1, 2), dtype=view.xp.int64)
            self.merged = folded if self.merged is None else self.merged + folded
        self.left = self.left + self.heads.own(self.held - kept).sum(axis=1)
        self.held = kept

    def take_back(self, mask: KeepMask, ops: Backend) -> None:
        """Rows of the archive return to the table."""
        assert self.archive is not None
        view = self.archive.view()
        count = self._count(view, mask, ops)
        if not count.any():
            return
        self.settle("recalled")
        self.alike = False
        here = self.heads.own(count)
        self.store.join(ops.compact(view, Plan(keep=mask), int(count.max())), here)
        self.archived = self.archived - count
        self.archive.apply(Plan(keep=view.valid & ~mask), self.heads.own(self.archived))
        self.held = self.held + count
        self.left = self.left - here.sum(axis=1)
        self.recalled += int(here.sum())

    def select_batch(self, index: Array, chosen: Counts) -> None:
        """Batch rows with all their state, in this order; ``chosen`` is the index on the host."""
        if not self.length:
            return
        self.store.select_batch(index)
        for name in _PER_ROW:
            setattr(self, name, getattr(self, name)[chosen])
        if self.archive is not None:
            self.archive.select_batch(index)
        if self.merged is not None:
            self.merged = self.merged[chosen]
        if (asked := self.queries) is not None:
            reach = None if asked.reach is None else asked.reach[chosen]
            self.queries = Queries(asked.vectors[chosen], asked.positions[chosen], asked.valid[chosen], reach)

    def report(self, ops: Backend) -> LayerReport:
        """What happened so far."""
        kv_bytes, column_bytes = self.store.nbytes()
        archive_bytes, archive_columns = self.archive.nbytes() if self.archive is not None else (0, 0)
        merged = 0 if self.merged is None else int(ops.host(self.merged).sum())
        held = self.heads.own(self.held) if self.held.size else self.held
        return LayerReport(
            rows=float(held.mean()) if held.size else 0.0,
            most=int(held.max(initial=0)),
            capacity=self.store.capacity,
            evicted=int(self.left.sum()) - merged,
            merged=merged,
            recalled=self.recalled,
            exceeded=int(self.exceeded.sum()),
            kv_bytes=kv_bytes,
            full_kv_bytes=self.row_bytes * held.size * self.length,
            column_bytes=column_bytes + archive_columns,
            archive_bytes=archive_bytes,
        )

    def _count(self, view: CacheView, mask: KeepMask, ops: Backend) -> HeadCounts:
        """How many rows of each head a mask marks."""
        rows = view.xp.sum(view.xp.astype(mask, view.xp.int64), axis=-1)
        counts: HeadCounts = np.asarray(ops.host(self.heads.all(rows)))
        return counts


def why_settled(layer: Layer, pipelines: Sequence[Pipeline]) -> str:
    """What stands in the way of taking the layer's tokens back, of the pipelines (prefill, decode) that there are."""
    by, phase = layer.settled_by
    acted = pipelines[0 if phase is Phase.PREFILL else -1]
    scorers = [pipeline.score for pipeline in pipelines]
    if by == "observed":
        observers = [s for s in scorers if isinstance(s, Observer) and getattr(s, "columns", None) != ()]
        return f"{_named(observers)} observed what they do to other rows"
    if by == "windowed":
        return f"{_named([s for s in scorers if isinstance(s, Windowed)])} goes by the latest queries, which are these"
    return {
        "recalled": f"{acted.recall!r} brought rows back from the archive",
        "planned": f"a plan of {acted!r} was carried out",
        "counted": f"{pipelines[-1]!r} counts from the prompt",
    }[by]


def _named(stages: Sequence[object]) -> str:
    return " and ".join(dict.fromkeys(map(repr, stages)))


def _folds(view: CacheView, into: Array) -> Array:
    """bool [B, H, S]: rows that fold into another."""
    return into[..., 0] >= 0 if into.shape[-1] == 1 else view.xp.any(into >= 0, axis=-1)
