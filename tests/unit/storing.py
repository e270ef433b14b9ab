"""Two stores, the plain one and the torch one, given the same at every turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from driving import table_of, to

from kvpolicy import CacheView, Column, Plan, Rows, Store, backend_by_name

__all__ = ["HEADS", "Pair", "arriving", "kept_by", "rows_for"]

Arr = np.ndarray[Any, np.dtype[Any]]
HEADS, DIM, VALUE_DIM = 3, 3, 2
LAYER, LAYERS = 1, 3


def rows_for(backend: str, keys: Arr, values: Arr, positions: Arr, valid: Arr, **columns: Arr) -> Rows:
    arrays = (to(backend, data) for data in (keys, values, positions, valid))
    return Rows(*arrays, {name: to(backend, data) for name, data in columns.items()})


def arriving(
    backend: str, start: int, count: int, *, batch: int = 1, heads: int = 2, dim: int = 3, dtype: Any = np.float32
) -> Rows:
    """Rows whose key says which they are: ``position + 1000 head``."""
    positions = np.broadcast_to(np.arange(start, start + count), (batch, count))
    named = positions[:, None, :, None] + 1000 * np.arange(heads)[None, :, None, None]
    keys = np.broadcast_to(named, (batch, heads, count, dim)).astype(dtype)
    return rows_for(backend, keys, -keys, positions, np.ones((batch, count), dtype=bool))


def kept_by(keep: Any) -> Arr:
    """Rows that a mask keeps of each head, as `Store.apply` wants them."""
    return np.asarray(keep).sum(axis=-1)


@dataclass
class Pair:
    """Both stores; what they are told is said in terms of positions, because each keeps its rows where it likes."""

    rng: np.random.Generator
    batch: int
    stores: dict[str, Store]
    arrived: int = 0
    registers: tuple[str, ...] = ()

    @classmethod
    def new(cls, seed: int, batch: int, *, on_host: bool = False) -> Pair:
        stores = {b: backend_by_name(b).store(LAYER, LAYERS, on_host=on_host) for b in ("numpy", "torch")}
        return cls(np.random.default_rng(seed), batch, stores)

    def append(self, count: int, *, limit: int | None, segments: bool) -> None:
        shape = (self.batch, HEADS, count)
        keys, values = (self.rng.standard_normal((*shape, width)) for width in (DIM, VALUE_DIM))
        positions = np.broadcast_to(np.arange(self.arrived, self.arrived + count), (self.batch, count))
        valid = self.rng.random((self.batch, count)) < 0.8
        columns = {"segment": self.rng.integers(0, 4, (self.batch, count))} if segments else {}
        self.arrived += count
        for backend, store in self.stores.items():
            view = store.append(rows_for(backend, keys, values, positions, valid, **columns), limit=limit)
            assert view.positions.shape == store.view().positions.shape

    def join(self, count: int) -> None:
        """Rows of another table: so many slots a head, each head with as many rows in them as it likes."""
        shape = (self.batch, HEADS, count)
        held = self.rng.integers(0, count + 1, shape[:2])
        valid = np.arange(count) < held[..., None]
        keys, values = (self.rng.standard_normal((*shape, width)) for width in (DIM, VALUE_DIM))
        positions = np.where(valid, np.arange(self.arrived, self.arrived + count), -1)
        columns = {"count": (self.rng.integers(1, 9, shape) * valid).astype(np.float32), "mass": self.rng.random(shape)}
        if self.rng.random() < 0.3:
            columns["segment"] = self.rng.integers(0, 4, shape)
        self.arrived += count
        for backend, store in self.stores.items():
            arrays = (to(backend, data) for data in (keys, values, positions, valid))
            table = {n: Column(to(backend, c), "sum" if n == "count" else "keep") for n, c in columns.items()}
            store.join(CacheView(*arrays, table), held)

    def apply(self, shares: Any, *, merge: bool) -> None:
        """Keep about these shares [B, H] of each head's rows."""
        chosen: dict[tuple[int, int, int], bool] = {}
        target: dict[tuple[int, int, int], int] = {}
        weight: dict[int, float] = {p: self.rng.random() for p in range(self.arrived)}
        view = self.stores["numpy"].view()
        kept = np.zeros((self.batch, HEADS), np.int64)
        for b, h in np.ndindex(self.batch, HEADS):
            there = [int(p) for p, ok in zip(view.positions[b, h], view.valid[b, h], strict=True) if ok]
            for p in there:
                chosen[b, h, p] = bool(self.rng.random() < shares[b, h])
            stay = [p for p in there if chosen[b, h, p]]
            kept[b, h] = len(stay)
            for p in there:
                if stay and not chosen[b, h, p] and self.rng.random() < 0.7:
                    target[b, h, p] = int(self.rng.choice(stay))
        register, scale = self.rng.random((self.batch, HEADS)), self.rng.random(self.arrived)
        for backend, store in self.stores.items():
            table = store.view()
            positions = np.asarray(table.positions)
            keep = np.zeros(positions.shape, dtype=bool)
            into = np.full((*positions.shape, 1), -1)
            weights, own, scales = np.zeros(into.shape), np.ones(positions.shape), np.ones(positions.shape)
            for (b, h, p), stays in chosen.items():
                n = int(np.flatnonzero(positions[b, h] == p)[0])
                keep[b, h, n] = stays
                if (b, h, p) in target:
                    into[b, h, n] = int(np.flatnonzero(positions[b, h] == target[b, h, p])[0])
                    weights[b, h, n], own[b, h, into[b, h, n, 0]] = weight[p], 0.5
                    scales[b, h, into[b, h, n, 0]] = scale[target[b, h, p]]
            arrays = [to(backend, data) for data in ((keep, into, weights, own) if merge else (keep,))]
            extra = {"key_scale": to(backend, scales)} if merge else {}
            store.apply(Plan(*arrays, **extra, registers={"tau": to(backend, register)}), kept)
        self.registers = ("tau",)

    def observe(self, name: str, on_merge: Any) -> None:
        known = self.rng.random((self.batch, HEADS, self.arrived))
        for backend, store in self.stores.items():
            positions = np.asarray(store.view().positions)
            data = np.take_along_axis(known, np.maximum(positions, 0), axis=-1)
            store.observe({name: Column(to(backend, data), on_merge)})

    def select(self) -> None:
        index = self.rng.integers(0, self.batch, self.rng.integers(1, 4))
        self.batch = len(index)
        for backend, store in self.stores.items():
            store.select_batch(to(backend, index))

    def compare(self) -> None:
        views = {name: store.view() for name, store in self.stores.items()}
        mine, due = views["torch"], views["numpy"]
        assert mine.columns.keys() == due.columns.keys()
        assert {n: c.on_merge for n, c in mine.columns.items()} == {n: c.on_merge for n, c in due.columns.items()}
        for name, view in views.items():
            assert self.stores[name].slots == view.shape[2]
        slots = self.stores["torch"].capacity * self.batch * HEADS
        assert self.stores["torch"].nbytes()[0] == round(slots * (DIM + VALUE_DIM) * 8)
        for b, h in np.ndindex(self.batch, HEADS):
            a, z = table_of(mine, b, h, np.asarray), table_of(due, b, h, np.asarray)
            assert a.positions == z.positions
            np.testing.assert_allclose(a.keys, z.keys, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(a.values, z.values, rtol=1e-12, atol=1e-12)
            for name in z.columns:
                np.testing.assert_allclose(a.columns[name], z.columns[name], rtol=1e-6, err_msg=name)
        for name in self.registers:
            np.testing.assert_array_equal(mine.registers[name], due.registers[name])
        assert (mine.layer, mine.num_layers) == (due.layer, due.num_layers) == (LAYER, LAYERS)
