"""The tables of a few layers as arrays, and what may be done to them without changing what they mean.

All arrays are numpy's, vectors in float64; `Scene.on` hands them to a backend. Each layer lays its rows out as an
engine would: first the rows that were there before this pass, in any order and with empty slots among them, then those
of this pass in order; in a ``shuffled`` scene the single row of this pass lies anywhere, as after decoding for a while.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .._plan import Scored
from .._protocols import Backend
from .._step import Phase, Queries, Step
from .._types import CacheView, Column
from ._numbers import Arr
from ._rotary import rotary

__all__ = ["Scene", "SceneLayer", "Staged"]

GARBAGE = 50.0  # what invalid rows hold: whoever reads it is off by far, and its square still fits in float16


@dataclass(frozen=True, slots=True)
class SceneLayer:
    """One layer; every array begins with [B, H, S] but ``quota`` and the registers, [B, H]."""

    keys: Arr
    values: Arr
    positions: Arr
    valid: Arr
    columns: Mapping[str, Column]
    scores: Arr
    keep: Arr
    quota: Arr
    registers: Mapping[str, Arr] = field(default_factory=dict)

    @property
    def held(self) -> Arr:
        """Valid rows, int64 [B, H]."""
        held: Arr = self.valid.sum(-1)
        return held

    def rows(self) -> Iterable[str]:
        """Names of the fields that have a row axis."""
        return ("keys", "values", "positions", "valid", "scores", "keep")

    def pick(self, slots: Arr) -> SceneLayer:
        """The rows in these slots, [B, H, n]."""

        def picked(data: Arr) -> Arr:
            index = slots.reshape(*slots.shape, *(1,) * (data.ndim - 3))
            return np.take_along_axis(data, index, axis=2)

        changed: dict[str, Any] = {name: picked(getattr(self, name)) for name in self.rows()}
        columns = {name: replace(c, data=picked(c.data)) for name, c in self.columns.items()}
        return replace(self, columns=columns, **changed)

    def index(self, where: Any) -> SceneLayer:
        """Batch rows and heads: the same index on every array."""
        changed: dict[str, Any] = {name: getattr(self, name)[where] for name in (*self.rows(), "quota")}
        return replace(
            self,
            columns={name: replace(c, data=c.data[where]) for name, c in self.columns.items()},
            registers={name: data[where] for name, data in self.registers.items()},
            **changed,
        )


@dataclass(frozen=True, slots=True)
class Staged:
    """What a stage is given, layer by layer, as arrays of a backend."""

    scored: tuple[Scored, ...]
    steps: tuple[Step, ...]
    keep: tuple[Any, ...]
    quotas: tuple[Arr, ...]
    budget: Arr


@dataclass(frozen=True, slots=True)
class Scene:
    """Layers of one request in the middle of its life.

    Attributes:
        layers: the tables.
        queries: [L, B, Hq, T, D], of every token that has passed, the earlier ones included.
        now: how many of the tokens, the last ones, are in this pass.
        padding: int64 [B], left padding.
        budget: int64 [B], at least 1: rows for each layer and head, on average.
        shuffled: the row of this pass lies anywhere.
        phase: which pipeline is running.
        dtype: of keys, values and queries.
        scale: softmax scale.
        sinks: [L, Hq], logits that belong to no row, for a backend that is asked for them.
    """

    layers: tuple[SceneLayer, ...]
    queries: Arr
    now: int
    padding: Arr
    budget: Arr
    shuffled: bool
    phase: Phase
    dtype: str
    scale: float
    sinks: Arr

    @property
    def tokens(self) -> int:
        """T: tokens that have passed, padding included."""
        return int(self.queries.shape[3])

    @property
    def seen(self) -> Arr:
        """int64 [B]."""
        return self.tokens - self.padding

    # What may be changed ---------------------------------------------------------------------------------------------

    def alone(self, b: int) -> Scene:
        """Batch row ``b`` without its padding."""
        pad = int(self.padding[b])
        layers = []
        for layer in self.layers:
            one = layer.index(np.s_[b : b + 1])
            positions = np.where(one.positions >= pad, one.positions - pad, -1)  # padding becomes an empty slot
            if not self.shuffled:  # ... or is left out, where it is part of this pass
                first = one.positions.shape[2] - self.now
                cut = max(0, pad - (self.tokens - self.now))
                slots = np.r_[0:first, first + cut : one.positions.shape[2]]
                slots = np.broadcast_to(slots, (*positions.shape[:2], len(slots)))
                one, positions = one.pick(slots), np.take_along_axis(positions, slots, axis=2)
            layers.append(replace(one, positions=positions))
        queries = self.queries[:, b : b + 1, :, pad:]
        return replace(
            self,
            layers=tuple(layers),
            queries=queries,
            now=min(self.now, queries.shape[3]),
            padding=np.zeros(1, np.int64),
            budget=self.budget[b : b + 1],
        )

    def padded(self, more: int, seed: int) -> Scene:
        """With ``more`` padding on the left of every batch row, and empty slots, both full of garbage."""
        rng = np.random.default_rng([seed, 1])
        whole = self.now == self.tokens and not self.shuffled
        layers = tuple(self._with_garbage(layer, more, rng, whole=whole) for layer in self.layers)
        shape = (*self.queries.shape[:3], more, self.queries.shape[4])
        queries = np.concatenate([GARBAGE * rng.standard_normal(shape), self.queries], axis=3)
        return replace(
            self,
            layers=layers,
            queries=queries,
            now=self.now + more if whole else self.now,
            padding=self.padding + more,
        )

    def _with_garbage(self, layer: SceneLayer, more: int, rng: np.random.Generator, *, whole: bool) -> SceneLayer:
        """Invalid rows in front: padding, and but for a whole prompt, which has none, empty slots."""
        empty = 0 if whole else 2
        arrival = np.concatenate([np.full(empty, -1 - more), np.arange(-more, 0)])
        shape = (*layer.valid.shape[:2], len(arrival))
        old = replace(layer, positions=np.where(layer.positions >= 0, layer.positions + more, -1))

        def joined(data: Arr, new: Arr) -> Arr:
            return np.concatenate([new.astype(data.dtype), data], axis=2)

        def trash(data: Arr) -> Arr:
            return joined(data, GARBAGE * (1 + rng.random((*shape, *data.shape[3:]))))

        return replace(
            old,
            keys=trash(old.keys),
            values=trash(old.values),
            scores=trash(old.scores),
            positions=joined(old.positions, np.broadcast_to(arrival + more, shape)),
            valid=joined(old.valid, np.zeros(shape)),
            keep=joined(old.keep, np.zeros(shape)),
            columns={
                name: replace(c, data=trash(c.data) if name != "count" else joined(c.data, np.zeros(shape)))
                for name, c in old.columns.items()
            },
        )

    def with_heads(self, order: Sequence[int]) -> Scene:
        """The heads in this order, each with its query heads; some may be left out."""
        chosen = np.asarray(order)
        groups = self.queries.shape[2] // self.layers[0].valid.shape[1]
        asked = (chosen[:, None] * groups + np.arange(groups)).ravel()
        return replace(
            self,
            layers=tuple(layer.index(np.s_[:, chosen]) for layer in self.layers),
            queries=self.queries[:, :, asked],
            sinks=self.sinks[:, asked],
        )

    def reslotted(self, seed: int) -> Scene:
        """Rows in other slots: those of earlier passes, and in a shuffled scene all."""
        rng = np.random.default_rng([seed, 2])
        layers = []
        for layer in self.layers:
            rows = layer.valid.shape[2]
            free = rows if self.shuffled else rows - self.now
            slots = np.broadcast_to(np.arange(rows), layer.valid.shape).copy()
            slots[..., :free] = rng.permuted(slots[..., :free], axis=-1)
            layers.append(layer.pick(slots))
        return replace(self, layers=tuple(layers))

    def needing(self, names: Iterable[str]) -> Scene:
        """With columns of these names, random and not negative, where they are missing."""
        layers = []
        for number, layer in enumerate(self.layers):
            columns = dict(layer.columns)
            for name in names:
                if name not in columns:
                    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
                    token = np.maximum(layer.positions - self.padding[:, None, None], -1)
                    drawn = rng.random((*layer.valid.shape[:2], self.tokens + 1))  # by token: no slot has its own
                    columns[name] = Column(np.take_along_axis(drawn, token, axis=-1))
            layers.append(replace(layer, columns=columns))
        return replace(self, layers=tuple(layers))

    # What stages are given -------------------------------------------------------------------------------------------

    def on(self, ops: Backend, device: str | None = None, *, count_bias: bool = False) -> Staged:
        """For a backend: the tables with their scores, and the step."""

        def vectors(data: Arr) -> Any:
            return ops.from_host(data, dtype=self.dtype, device=device)

        def scalars(data: Arr) -> Any:
            return ops.from_host(data, device=device)

        number, held = len(self.layers), tuple(layer.held for layer in self.layers)
        scored = [
            Scored(
                CacheView(
                    keys=vectors(layer.keys),
                    values=vectors(layer.values),
                    positions=scalars(layer.positions),
                    valid=scalars(layer.valid),
                    columns={name: replace(c, data=scalars(c.data)) for name, c in layer.columns.items()},
                    registers={name: scalars(data) for name, data in layer.registers.items()},
                    layer=index,
                    num_layers=number,
                ),
                scalars(layer.scores),
            )
            for index, layer in enumerate(self.layers)
        ]
        return Staged(
            scored=tuple(scored),
            steps=tuple(
                self._step(queries, vectors, scalars, ops, held, count_bias=count_bias) for queries in self.queries
            ),
            keep=tuple(scalars(layer.keep) for layer in self.layers),
            quotas=tuple(layer.quota for layer in self.layers),
            budget=self.budget,
        )

    def _step(
        self, queries: Arr, vectors: Any, scalars: Any, ops: Backend, held: tuple[Arr, ...], *, count_bias: bool
    ) -> Step:
        before = self.tokens - self.now
        places = np.broadcast_to(np.arange(self.tokens), (len(self.padding), self.tokens)).copy()
        real = places >= self.padding[:, None]
        decoding = self.phase is Phase.DECODE
        earlier = None
        if before:
            earlier = Queries(vectors(queries[:, :, :before]), scalars(places[:, :before]), scalars(real[:, :before]))
        return Step(
            phase=self.phase,
            seen=self.seen,
            prompt=np.maximum(self.seen - 1, 0) if decoding else self.seen,
            prompt_kept=held[0] if decoding else np.zeros_like(held[0]),
            queries=vectors(queries[:, :, before:]),
            query_positions=scalars(places[:, before:]),
            query_valid=scalars(real[:, before:]),
            scale=self.scale,
            ops=ops,
            row_bytes=64,
            count_bias=count_bias,
            held=held,
            prompt_quota=held if decoding else tuple(np.zeros_like(rows) for rows in held),
            earlier=earlier,
            rotate=rotary(ops),
            length=self.tokens,
        )
