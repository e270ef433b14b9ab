"""What the slow model tells stages: tables, queries and the step, made anew for every question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, final

import numpy as np

from .._policy import Policy
from .._protocols import Backend
from .._step import Phase, Queries, Step
from .._types import Array, CacheView, Rotate
from ._numbers import Arr
from ._rows import Sheet, Table

__all__ = ["ITEMSIZE", "Now", "SlowLayer", "Told"]

Asked: TypeAlias = list[tuple[int, Arr]]  # queries of one batch row: position, and [Hq, D]

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes


@dataclass(slots=True)
class SlowLayer:
    """One layer: its rows, and the books.

    Attributes:
        table: the rows that are attended to.
        archive: rows that a pipeline with a recaller has released.
        seen: int64 [B], tokens that are not padding.
        prompt: int64 [B], those of them that came in prefill passes.
        prompt_kept: int64 [B, H], rows of each head when the latest prompt was complete.
        prompt_quota: int64 [B, H], what the latest prefill plan gave each head.
        left: int64 [B], rows that plans took away, less those that came back.
        merged: int64 [B], those of them that folded into another.
        exceeded: int64 [B], rows above the quota at the batch row's latest plan.
        asked: the queries that are remembered of each batch row, oldest first.
        recalled: rows that came back, of all batch rows.
    """

    table: Table
    archive: Table
    seen: Arr
    prompt: Arr
    prompt_kept: Arr
    prompt_quota: Arr
    left: Arr
    merged: Arr
    exceeded: Arr
    asked: list[Asked] = field(default_factory=list)
    recalled: int = 0

    @classmethod
    def empty(cls, batch: int, heads: int, widths: tuple[int, int]) -> SlowLayer:
        """Before the first pass."""
        one, other = (Table([[[] for _ in range(heads)] for _ in range(batch)], widths) for _ in range(2))
        rows, cells = np.zeros(batch, np.int64), np.zeros((batch, heads), np.int64)
        return cls(one, other, rows, rows, cells, cells, rows, rows, rows, [[] for _ in range(batch)])


@dataclass(frozen=True, slots=True)
class Now:
    """The pass that is running.

    Attributes:
        phase: prompt or token.
        complete: no more of the prompt is to come.
        start: tokens before it.
        valid: bool [B, Q]; False for padding.
        places: int64 [B, Q], positions.
        scale: softmax scale.
    """

    phase: Phase
    complete: bool
    start: int
    valid: Arr
    places: Arr
    scale: float


@final
@dataclass(frozen=True, slots=True)
class Told:
    """Makes what stages are given, on a backend and device, in a dtype; arguments as those of `SlowCache`."""

    policy: Policy
    layers: int
    ops: Backend
    device: Any
    dtype: str
    rotate: Rotate | None

    def array(self, data: Arr, dtype: str | None = None) -> Array:
        """For the backend."""
        return self.ops.from_host(data, dtype=dtype, device=self.device)

    def view(self, number: int, sheet: Sheet) -> CacheView:
        """The table of a layer as it is attended to: under re-indexed positions each key stands at its rank."""
        view = sheet.view(self.array, self.dtype, number, self.layers)
        if self.policy.positions != "slots":
            return view
        return replace(view, keys=self.turned(view.keys, np.where(sheet.valid, sheet.rank - sheet.positions, 0)))

    def queries(self, layer: SlowLayer, queries: Arr, now: Now) -> Array:
        """Those to attend with, [B, Hq, Q, D]: under re-indexed positions each stands where its own row does."""
        asking = self.array(queries, self.dtype)
        if self.policy.positions != "slots":
            return asking
        turn = np.zeros(queries.shape[:3], np.int64)
        groups = queries.shape[1] // len(layer.table.heads[0])
        for b, hq, t in np.ndindex(*turn.shape):
            if now.valid[b, t]:
                place = now.start + t
                turn[b, hq, t] = [row.position for row in layer.table.heads[b][hq // groups]].index(place) - place
        return self.turned(asking, turn)

    def turned(self, vectors: Array, by: Arr) -> Array:
        """Rotary vectors [B, H, N, D] turned by so many positions, int64 [B, H, N]."""
        assert self.rotate is not None
        return self.rotate(vectors, self.array(by))

    def step(self, layers: Sequence[SlowLayer], number: int, queries: Array, now: Now) -> Step:
        """What layer ``number`` knows right after it has attended."""
        layer, widths = layers[number], layers[number].table.widths
        return Step(
            phase=now.phase,
            seen=layer.seen,
            prompt=layer.prompt,
            prompt_kept=layer.prompt_kept,
            queries=queries,
            query_positions=self.array(now.places),
            query_valid=self.array(now.valid),
            scale=now.scale,
            ops=self.ops,
            row_bytes=sum(widths) * ITEMSIZE[self.dtype] * layer.prompt_kept.size * self.layers,
            count_bias=self.policy.count_bias,
            held=tuple(other.table.held for other in layers),
            archived=tuple(other.archive.held for other in layers),
            prompt_quota=tuple(other.prompt_quota for other in layers),
            earlier=self._earlier(layer),
            rotate=self.rotate,
            length=now.start + now.valid.shape[1],
        )

    def _earlier(self, layer: SlowLayer) -> Queries | None:
        """The remembered queries; those of batch rows that have fewer stand behind padding."""
        most = max(len(known) for known in layer.asked)
        if most == 0:
            return None
        like = next(known[0][1] for known in layer.asked if known)
        vectors = np.zeros((len(layer.asked), len(like), most, like.shape[1]))
        places, valid = np.zeros((len(layer.asked), most), np.int64), np.zeros((len(layer.asked), most), bool)
        for b, known in enumerate(layer.asked):
            for t, (place, query) in enumerate(known, most - len(known)):
                vectors[b, :, t], places[b, t], valid[b, t] = query, place, True
        return Queries(self.array(vectors, self.dtype), self.array(places), self.array(valid))
