"""Where the rows of a layer live on a device: preallocated, written in place, slots used again.

A prompt is not copied on arrival: the store borrows the model's own tensors, and never writes to them, until a plan (or
the next append) moves the rows to a storage of its own. A plan that leaves most of that in use only punches holes, and
the next row is written into one; a plan that frees a good part of it, or meets more slots than a bounded policy may
hold, moves the survivors to a smaller storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from .._errors import CacheError
from .._protocols import Store
from .._types import EMPTY, Array, CacheView, Column, Plan, Rows

__all__ = ["TorchStore"]


@dataclass(slots=True)
class _Table:
    """The physical table: every tensor has ``capacity`` rows, of which the first ``used`` make up the view."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    valid: Tensor
    columns: dict[str, Column]
    used: int
    borrowed: bool = False  # keys and values belong to the model


@final
class TorchStore(Store):
    """Rows of one layer.

    Args:
        layer: index of the layer among those under the policy.
        num_layers: how many there are.
        compact: the backend's `compact`.
    """

    def __init__(self, layer: int, num_layers: int, *, compact: Callable[[CacheView, Plan, int], CacheView]) -> None:
        self._layer, self._num_layers, self._compact = layer, num_layers, compact
        self._table: _Table | None = None
        self._registers: Mapping[str, Array] = EMPTY
        self._limit: int | None = None  # slots that suffice, if the policy is bounded
        self._most = 0  # no head holds more rows than this, so at least used - most slots of each are free

    @property
    def capacity(self) -> int:
        """Physical rows per head."""
        return 0 if self._table is None else int(self._table.positions.shape[-1])

    def nbytes(self) -> tuple[int, int]:
        """Bytes of the tensors held: keys and values; positions, validity and columns."""
        if (table := self._table) is None:
            return 0, 0
        scalars = [table.positions, table.valid, *(column.data for column in table.columns.values())]
        return table.keys.nbytes + table.values.nbytes, sum(tensor.nbytes for tensor in scalars)

    def append(self, rows: Rows, /, *, limit: int | None = None) -> CacheView:
        """Borrow the first rows; write later ones behind the table, a single one into a free slot if there is any."""
        with _normal_tensors():
            self._limit = limit
            if self._table is None:
                self._table = _borrow(rows)
            else:
                count = int(rows.positions.shape[-1])
                if count > 1 or self._most >= self._table.used:
                    self._extend(count, limit)
                if count > 1:
                    self._write(rows, slice(self._table.used - count, self._table.used))
                else:
                    self._scatter(rows)
            self._most += int(rows.positions.shape[-1])
            return self.view()

    def view(self) -> CacheView:
        """Windows on the storage; nothing is copied."""
        table = self._held()
        used = slice(table.used)
        return CacheView(
            keys=table.keys[:, :, used],
            values=table.values[:, :, used],
            positions=table.positions[..., used],
            valid=table.valid[..., used],
            columns={name: replace(c, data=c.data[..., used]) for name, c in table.columns.items()},
            registers=self._registers,
            layer=self._layer,
            num_layers=self._num_layers,
        )

    def observe(self, columns: Mapping[str, Column], /) -> None:
        """Write columns of the view into the storage."""
        with _normal_tensors():
            table = self._held()
            for name, column in columns.items():
                known = table.columns.get(name)
                if known is not None and known.data.dtype == column.data.dtype:
                    room = known.data
                else:
                    room = column.data.new_zeros(table.positions.shape)
                room[..., : table.used] = column.data
                table.columns[name] = replace(column, data=room)

    def apply(self, plan: Plan, rows: int, /) -> None:
        """Punch holes where the storage stays in use; otherwise compact into a new storage of the right size."""
        with _normal_tensors():
            table = self._held()
            wanted = rows + 1  # one slot more, for the row that arrives before the next eviction
            bearable = wanted + wanted // 4 if self._limit is None else max(wanted, self._limit)
            if plan.into is None and not table.borrowed and wanted <= self.capacity <= bearable:
                self._registers = {**self._registers, **plan.registers}
                gone = ~plan.keep
                table.positions[..., : table.used].masked_fill_(gone, -1)
                table.valid[..., : table.used].masked_fill_(gone, False)
            else:
                view = self._compact(self.view(), plan, rows)
                self._registers = view.registers
                self._table = _own(view, wanted)
            self._most = rows

    def select_batch(self, index: Array, /) -> None:
        """Batch rows with everything that belongs to them."""
        with _normal_tensors():
            if (table := self._table) is None:
                return
            index = torch.as_tensor(index, device=table.positions.device)
            self._table = _map(table, lambda tensor: tensor.index_select(0, index.to(tensor.device)))
            self._registers = {name: data.index_select(0, index) for name, data in self._registers.items()}

    def clear(self) -> None:
        """Release the storage."""
        self._table, self._registers, self._limit, self._most = None, EMPTY, None, 0

    def _held(self) -> _Table:
        if self._table is None:
            raise CacheError(f"layer {self._layer} holds no rows yet: run a forward pass first.")
        return self._table

    def _extend(self, count: int, limit: int | None) -> None:
        """Make room for ``count`` more rows at the end of the view; grow by an eighth where the storage is full."""
        table = self._held()
        used = table.used + count
        if used > self.capacity:
            ahead = 0 if count > 1 else max(3, used // 8)
            room = used + ahead if limit is None else max(used, min(used + ahead, limit))
            table = self._table = _map(table, lambda tensor: _grown(tensor, table.used, room))
            table.positions[..., table.used :] = -1
        table.used = used

    def _write(self, rows: Rows, spot: slice) -> None:
        table = self._held()
        table.keys[:, :, spot] = rows.keys
        table.values[:, :, spot] = rows.values
        table.positions[..., spot] = rows.positions[:, None]
        table.valid[..., spot] = rows.valid[:, None]
        for name, column in table.columns.items():
            column.data[..., spot] = _arriving(rows, name)[:, None]
        self._add_columns(rows, spot)

    def _scatter(self, rows: Rows) -> None:
        """Write one row per head into the head's first free slot."""
        table = self._held()
        slot = (table.positions[..., : table.used] < 0).to(torch.uint8).argmax(-1, keepdim=True)
        wide = slot[..., None]
        table.keys.scatter_(2, wide.expand(-1, -1, -1, table.keys.shape[-1]), rows.keys.to(table.keys.dtype))
        table.values.scatter_(2, wide.expand(-1, -1, -1, table.values.shape[-1]), rows.values.to(table.values.dtype))
        table.positions.scatter_(-1, slot, rows.positions[:, None].expand_as(slot))
        table.valid.scatter_(-1, slot, rows.valid[:, None].expand_as(slot))
        for name, column in table.columns.items():
            arriving = _arriving(rows, name).to(column.data.dtype)
            column.data.scatter_(-1, slot, arriving[:, None].expand_as(slot))
        self._add_columns(rows, slot)

    def _add_columns(self, rows: Rows, spot: slice | Tensor) -> None:
        """Columns that these rows are the first to bring: zero for all the others."""
        table = self._held()
        for name in rows.columns.keys() - table.columns.keys():
            room = rows.columns[name].new_zeros(table.positions.shape)
            if isinstance(spot, slice):
                room[..., spot] = rows.columns[name][:, None]
            else:
                room.scatter_(-1, spot, rows.columns[name][:, None].expand_as(spot))
            table.columns[name] = Column(room)


def _normal_tensors() -> torch.inference_mode:
    """Storage is written in place for the whole request, in and out of `torch.inference_mode`.

    Tensors made inside that mode could be written only there.
    """
    return torch.inference_mode(False)


def _arriving(rows: Rows, name: str) -> Tensor:
    """What new rows [B, Q] carry in a column: their own value, a count of one, or zero."""
    if name in rows.columns:
        data: Tensor = rows.columns[name]
        return data
    valid: Tensor = rows.valid
    return valid.float() if name == "count" else torch.zeros_like(valid, dtype=torch.float32)


def _borrow(rows: Rows) -> _Table:
    shape = (rows.keys.shape[0], rows.keys.shape[1], rows.positions.shape[-1])
    columns = {name: Column(data[:, None].expand(shape).clone()) for name, data in rows.columns.items()}
    columns["count"] = Column(rows.valid[:, None].expand(shape).float(), on_merge="sum")
    return _Table(
        keys=rows.keys,
        values=rows.values,
        positions=rows.positions[:, None].expand(shape).clone(),  # all layers share rows.positions: never write there
        valid=rows.valid[:, None].expand(shape).clone(),
        columns=columns,
        used=shape[2],
        borrowed=True,
    )


def _own(view: CacheView, room: int) -> _Table:
    """The storage for a compacted view."""
    used = view.shape[2]
    table = _Table(view.keys, view.values, view.positions, view.valid, dict(view.columns), used)
    if room > used:
        table = _map(table, lambda tensor: _grown(tensor, used, room))
        table.positions[..., used:] = -1
    return table


def _grown(tensor: Tensor, used: int, room: int) -> Tensor:
    """The first ``used`` rows in a new tensor of ``room`` rows, zeros behind them."""
    out = tensor.new_zeros(*tensor.shape[:2], room, *tensor.shape[3:])
    out[:, :, :used] = tensor[:, :, :used]
    return out


def _map(table: _Table, change: Callable[[Tensor], Any]) -> _Table:
    return _Table(
        keys=change(table.keys),
        values=change(table.values),
        positions=change(table.positions),
        valid=change(table.valid),
        columns={name: replace(column, data=change(column.data)) for name, column in table.columns.items()},
        used=table.used,
    )
