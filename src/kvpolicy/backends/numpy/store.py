"""Rows of a layer in tables that are made anew by every change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias, final

import numpy as np

from ..._errors import CacheError
from ..._plan import Plan
from ..._protocols import Store
from ..._types import Array, CacheView, Column, HeadCounts, Rows
from .compaction import compacted

__all__ = ["NumpyStore"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@final
class NumpyStore(Store):
    """A table that is made anew by every change: a view, once handed out, never changes.

    Args:
        layer: index of this layer among the layers under the policy.
        num_layers: how many layers are under the policy.
    """

    def __init__(self, layer: int, num_layers: int) -> None:
        self._layer = layer
        self._num_layers = num_layers
        self._table: CacheView | None = None

    @property
    def capacity(self) -> float:
        """Rows held per head: nothing is allocated ahead."""
        return self.slots

    @property
    def slots(self) -> int:
        """Rows of the table."""
        return 0 if self._table is None else self._table.shape[2]

    def nbytes(self) -> tuple[int, int]:
        """Bytes of keys and values, and of positions, validity and columns."""
        if self._table is None:
            return 0, 0
        table = self._table
        vectors = table.keys.nbytes + table.values.nbytes
        scalars = table.positions.nbytes + table.valid.nbytes + sum(c.data.nbytes for c in table.columns.values())
        return int(vectors), int(scalars)

    def append(self, rows: Rows, /, *, limit: int | None = None) -> CacheView:
        """Add rows at the end and return the table; it never grows ahead, so ``limit`` changes nothing."""
        heads = rows.keys.shape[1]
        valid = _per_head(rows.valid, heads).astype(bool)
        columns = {name: Column(_per_head(data, heads)) for name, data in rows.columns.items()}
        columns["count"] = Column(valid.astype(np.float32), on_merge="sum")
        new = CacheView(
            keys=np.array(rows.keys),
            values=np.array(rows.values),
            positions=_per_head(rows.positions, heads).astype(np.int64),
            valid=valid,
            columns=columns,
            layer=self._layer,
            num_layers=self._num_layers,
        )
        self._table = new if self._table is None else _joined(self._table, new)
        return self._table

    def view(self, *, near: bool = False) -> CacheView:
        """The table as it is.

        Raises:
            CacheError: if nothing was ever appended.
        """
        if self._table is None:
            raise CacheError(f"The store of layer {self._layer} is empty; append rows before using its table.")
        return self._table

    def observe(self, columns: Mapping[str, Column], /) -> None:
        """Add or replace scalar columns."""
        owned = {name: replace(column, data=np.array(column.data)) for name, column in columns.items()}
        self._table = self.view().with_columns(owned)

    def apply(self, plan: Plan, kept: HeadCounts, /) -> None:
        """Carry out a plan: `NumpyBackend.compact` into the rows of the fullest head."""
        self._table = compacted(self.view(), plan, int(kept.max()))

    def join(self, rows: CacheView, count: HeadCounts, /) -> None:
        """Add the rows of another table at the end; the first ones make up the table."""
        new = replace(rows, layer=self._layer, num_layers=self._num_layers, rank=None, alike=False)
        self._table = new if self._table is None else _joined(self._table, new)

    def select_batch(self, index: Array, /) -> None:
        """Keep these batch rows, in this order, repeats allowed; an empty store stays empty."""
        if self._table is None:
            return
        table, chosen = self._table, np.asarray(index, dtype=np.int64)
        self._table = replace(
            table,
            keys=table.keys[chosen],
            values=table.values[chosen],
            positions=table.positions[chosen],
            valid=table.valid[chosen],
            columns={name: replace(column, data=column.data[chosen]) for name, column in table.columns.items()},
            registers={name: np.asarray(data)[chosen] for name, data in table.registers.items()},
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> NumpyStore:
        """Tables are values that are replaced and never written to: they can be shared."""
        return copy.copy(self)

    def clear(self) -> None:
        """Forget everything."""
        self._table = None


def _per_head(data: Array, heads: int) -> _Array:
    """[B, Q] -> [B, H, Q], as memory of its own."""
    return np.repeat(np.asarray(data)[:, None, :], heads, axis=1)


def _joined(old: CacheView, new: CacheView) -> CacheView:
    """The rows of both, in the dtypes of the old table; a column that one side lacks is 0 there."""
    columns = {}
    for name in {**old.columns, **new.columns}:
        like = old.columns.get(name) or new.columns[name]
        parts = [
            table.columns[name].data if name in table.columns else np.zeros(table.shape, dtype=like.data.dtype)
            for table in (old, new)
        ]
        columns[name] = replace(like, data=np.concatenate(parts, axis=2).astype(like.data.dtype))
    return replace(
        old,
        keys=np.concatenate([old.keys, new.keys.astype(old.keys.dtype)], axis=2),
        values=np.concatenate([old.values, new.values.astype(old.values.dtype)], axis=2),
        positions=np.concatenate([old.positions, new.positions], axis=2),
        valid=np.concatenate([old.valid, new.valid], axis=2),
        columns=columns,
    )
