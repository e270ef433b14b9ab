"""One layer of a session: its store, its archive, and what the host knows of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._errors import CacheError
from ._protocols import Backend, Store
from ._types import Array, CacheView, Counts, HeadCounts, KeepMask, Plan, Queries, Rows
from .report import LayerReport

__all__ = ["Layer"]

_PER_ROW = ("seen", "prompt", "prompt_kept", "prompt_quota", "held", "left", "exceeded", "archived")


def _none() -> Counts:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Layer:
    """Host-side knowledge of one layer; counts are numpy: to decide whether to act nobody waits for the device."""

    store: Store
    archive: Store | None = None
    length: int = 0  # logical: tokens that have passed, padding included
    seen: Counts = field(default_factory=_none)  # [B]
    prompt: Counts = field(default_factory=_none)  # [B]
    prompt_kept: HeadCounts = field(default_factory=_none)  # [B, H], as all the following
    prompt_quota: HeadCounts = field(default_factory=_none)
    held: HeadCounts = field(default_factory=_none)
    archived: HeadCounts = field(default_factory=_none)
    left: Counts = field(default_factory=_none)  # [B], rows that plans took away
    exceeded: Counts = field(default_factory=_none)  # [B]
    recalled: int = 0
    merged: Any = None  # [B], of those that left; stays on the device until somebody asks
    limit: int | None = None  # slots that suffice while decoding, where the schedule is bounded
    row_bytes: int = 0  # one row of one head
    queries: Queries | None = None  # the latest ones, where a scorer wants them
    view: CacheView | None = None  # the table being attended over, from append to advance

    def begin(self, keys: Array, values: Array) -> None:
        """Take the shape of the first rows.

        Raises:
            CacheError: if the batch size changed within the request.
        """
        batch, heads = int(keys.shape[0]), int(keys.shape[1])
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
        return view

    def release(self, view: CacheView, plan: Plan, kept: HeadCounts, ops: Backend) -> None:
        """Rows that a plan neither keeps nor folds go to the archive; before it is applied."""
        assert self.archive is not None
        gone = view.valid & ~plan.keep
        if plan.into is not None:
            gone = gone & ~_folds(view, plan.into)
        count = self.held - kept if plan.into is None else _count(view, gone, ops)
        if count.any():
            self.archive.join(ops.compact(self.store.view(), Plan(keep=gone), int(count.max())), count)
            self.archived = self.archived + count

    def apply(self, view: CacheView, plan: Plan, kept: HeadCounts, quota: HeadCounts) -> None:
        """Carry out a plan that keeps ``kept`` rows of each head; ``quota`` is what they were to keep."""
        self.store.apply(plan, kept)
        if plan.into is not None:
            folded = view.xp.sum(view.xp.astype(_folds(view, plan.into), view.xp.int64), axis=(1, 2))
            self.merged = folded if self.merged is None else self.merged + folded
        self.left = self.left + (self.held - kept).sum(axis=1)
        self.exceeded = np.maximum(kept - quota, 0).sum(axis=1)
        self.held = kept

    def take_back(self, mask: KeepMask, ops: Backend) -> None:
        """Rows of the archive return to the table."""
        assert self.archive is not None
        view = self.archive.view()
        count = _count(view, mask, ops)
        if not count.any():
            return
        self.store.join(ops.compact(view, Plan(keep=mask), int(count.max())), count)
        self.archived = self.archived - count
        self.archive.apply(Plan(keep=view.valid & ~mask), self.archived)
        self.held = self.held + count
        self.left = self.left - count.sum(axis=1)
        self.recalled += int(count.sum())

    def select_batch(self, index: Array, chosen: Counts) -> None:
        """Batch rows with all their state, in this order."""
        if not self.length:
            return
        self.store.select_batch(index)
        for name in _PER_ROW:
            setattr(self, name, getattr(self, name)[chosen])
        if self.archive is not None:
            self.archive.select_batch(index)
        if self.merged is not None:
            self.merged = self.merged[index]
        if (asked := self.queries) is not None:
            self.queries = Queries(asked.vectors[index], asked.positions[index], asked.valid[index])

    def report(self, ops: Backend) -> LayerReport:
        """What happened so far."""
        kv_bytes, column_bytes = self.store.nbytes()
        archive_bytes, archive_columns = self.archive.nbytes() if self.archive is not None else (0, 0)
        merged = 0 if self.merged is None else int(ops.host(self.merged).sum())
        return LayerReport(
            rows=float(self.held.mean()) if self.held.size else 0.0,
            most=int(self.held.max(initial=0)),
            capacity=self.store.capacity,
            evicted=int(self.left.sum()) - merged,
            merged=merged,
            recalled=self.recalled,
            exceeded=int(self.exceeded.sum()),
            kv_bytes=kv_bytes,
            full_kv_bytes=self.row_bytes * self.held.size * self.length,
            column_bytes=column_bytes + archive_columns,
            archive_bytes=archive_bytes,
        )


def _folds(view: CacheView, into: Array) -> Array:
    """bool [B, H, S]: rows that fold into another."""
    return view.xp.any(into >= 0, axis=-1)


def _count(view: CacheView, mask: KeepMask, ops: Backend) -> HeadCounts:
    counts: HeadCounts = np.asarray(ops.host(view.xp.sum(view.xp.astype(mask, view.xp.int64), axis=-1)))
    return counts
