"""Where the rows of a layer live on a device: preallocated, written in place, slots used again.

A prompt is not copied on arrival: the store borrows the model's own tensors, and never writes to them, until a plan (or
the next append) moves the rows to a storage of its own. A plan that leaves most of that in use only punches holes, and
the next row is written into one; a plan that frees a good part of it, or meets more slots than a bounded policy may
hold, moves the survivors to a smaller storage. Where heads keep different numbers of rows, that storage is as ragged as
they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch

from .._errors import CacheError
from .._plan import Plan
from .._protocols import Store
from .._types import EMPTY, Array, CacheView, Column, HeadCounts, Rows
from ._torch_table import StoredTable, as_table, borrow, own
from ._torch_vectors import Block, slots_for, widened

__all__ = ["TorchStore"]


@final
class TorchStore(Store):
    """Rows of one layer.

    Args:
        layer: index of the layer among those under the policy.
        num_layers: how many there are.
        compact: the backend's `compact`.
        put: writes a single row into the first free slot of each head, and says whether it did; None: torch does.
        on_host: keep keys and values in host memory; scalars stay on the device.
    """

    def __init__(
        self,
        layer: int,
        num_layers: int,
        *,
        compact: Callable[[CacheView, Plan, int], CacheView],
        put: Callable[[StoredTable, Rows], bool] | None = None,
        on_host: bool = False,
    ) -> None:
        self._layer, self._num_layers, self._compact, self._on_host = layer, num_layers, compact, on_host
        self._put_one = put
        self._table: StoredTable | None = None
        self._registers: Mapping[str, Array] = EMPTY
        self._limit: int | None = None  # slots that suffice, if the policy is bounded
        self._held: HeadCounts = np.zeros((0, 0), np.int64)  # slots in use, padding included

    @property
    def capacity(self) -> float:
        """Physical rows per head, on average."""
        return 0 if self._table is None else float(self._table.keys.room.mean())

    @property
    def slots(self) -> int:
        """Slots of the roomiest head that are in use."""
        return 0 if self._table is None else self._table.used

    def nbytes(self) -> tuple[int, int]:
        """Bytes of the tensors held: keys and values, and all that is known of their rows."""
        return (0, 0) if self._table is None else self._table.nbytes()

    def append(self, rows: Rows, /, *, limit: int | None = None) -> CacheView:
        """Borrow the first rows; write later ones behind the table, a single one into a free slot if there is any."""
        with _normal_tensors():
            self._limit = limit
            count = int(rows.positions.shape[-1])
            if self._table is None:
                self._table = borrow(rows)
                self._held = np.zeros(tuple(rows.keys.shape[:2]), np.int64)
            elif count > 1:
                self._extend(count)
                self._write(rows)
            else:
                self._make_room(1)
                if self._put_one is None or not self._put_one(self._filled(), rows):
                    self._scatter(as_table(rows, self._held.shape[1]))
            self._held = self._held + count
            return self.view()

    def join(self, rows: CacheView, count: HeadCounts, /) -> None:
        """Write the rows into free slots of their heads; the first ones make up the table."""
        with _normal_tensors():
            if self._table is None:
                home = _home(rows, self._on_host)
                self._table = own(home, count + 1)
                self._held = count
            else:
                self._make_room(int(rows.shape[2]))
                self._scatter(rows)
                self._held = self._held + count

    def view(self, *, near: bool = False) -> CacheView:
        """Windows on the storage; keys and values of ragged heads are gathered when somebody looks at them."""
        table = self._filled()
        used, device = slice(table.used), table.positions.device
        keys, values = table.keys.window(table.used), table.values.window(table.used)
        return CacheView(
            keys=keys.to(device) if near else keys,
            values=values.to(device) if near else values,
            positions=table.positions[..., used],
            valid=table.valid[..., used],
            columns={name: replace(c, data=c.data[..., used]) for name, c in table.columns.items()},
            registers=self._registers,
            layer=self._layer,
            num_layers=self._num_layers,
            rank=None if table.rank is None else table.rank.expand(table.positions.shape),
        )

    def observe(self, columns: Mapping[str, Column], /) -> None:
        """Write columns of the view into the storage."""
        with _normal_tensors():
            table = self._filled()
            for name, column in columns.items():
                known = table.columns.get(name)
                if known is not None and known.data.dtype == column.data.dtype:
                    known.data[..., : table.used] = column.data
                    table.columns[name] = replace(column, data=known.data)
                else:
                    table.columns[name] = replace(column, data=widened(column.data, table.width, 0))

    def apply(self, plan: Plan, kept: HeadCounts, /) -> None:
        """Punch holes where the storage stays in use; otherwise compact into a new storage of the right size."""
        with _normal_tensors():
            table = self._filled()
            wanted = kept + 1  # one slot more, for the row that arrives before the next eviction
            ideal, room = slots_for(wanted), table.keys.room
            bearable = ideal + ideal // 4
            if self._limit is not None:
                bearable = max(ideal, self._limit * kept.size) if isinstance(table.keys, Block) else ideal
            fits = bool(np.all(wanted <= room)) and int(room.sum()) <= bearable
            if plan.into is None and not table.borrowed and fits:
                self._registers = {**self._registers, **plan.registers}
                gone = ~plan.keep
                table.positions[..., : table.used].masked_fill_(gone, -1)
                table.valid[..., : table.used].masked_fill_(gone, False)
            else:
                view = self.view()
                view = self._compact(view, plan, min(int(wanted.max()), view.shape[2]))
                self._registers = view.registers
                self._table = own(view, wanted, fresh=True)
                self._table.used = int(kept.max())
            self._held = kept

    def select_batch(self, index: Array, /) -> None:
        """Batch rows with everything that belongs to them."""
        with _normal_tensors():
            if (table := self._table) is None:
                return
            index = torch.as_tensor(index, device=table.positions.device)
            chosen = index.cpu().numpy()
            view, room = self.view(), table.keys.room[chosen]
            self._table = own(
                replace(
                    view,
                    keys=view.keys.index_select(0, index.to(view.keys.device)),
                    values=view.values.index_select(0, index.to(view.values.device)),
                    positions=view.positions.index_select(0, index),
                    valid=view.valid.index_select(0, index),
                    columns={n: replace(c, data=c.data.index_select(0, index)) for n, c in view.columns.items()},
                ),
                room,
            )
            self._held = self._held[chosen]
            self._registers = {name: data.index_select(0, index) for name, data in self._registers.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchStore:
        """The same rows in a storage of their own, which can be written to like this one."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        with _normal_tensors():
            for name, value in vars(self).items():
                setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def clear(self) -> None:
        """Release the storage."""
        self._table, self._registers, self._limit = None, EMPTY, None
        self._held = np.zeros((0, 0), np.int64)

    def _filled(self) -> StoredTable:
        if self._table is None:
            raise CacheError(f"layer {self._layer} holds no rows yet: run a forward pass first.")
        return self._table

    def _extend(self, count: int) -> None:
        """Room for ``count`` more rows at the end of the view, the same for all heads."""
        table = self._filled()
        if table.borrowed or table.used + count > table.keys.room.min():
            self._grow(np.full(self._held.shape, table.used + count))
        self._filled().used += count

    def _make_room(self, count: int) -> None:
        """See that every head has ``count`` free slots in the view; grow by an eighth where it has not."""
        table = self._filled()
        needed = self._held + count
        if np.any(needed > np.minimum(table.keys.room, table.used)) or table.borrowed:
            if table.borrowed or np.any(needed > table.keys.room):
                ahead = np.maximum(needed, table.used + count if isinstance(table.keys, Block) else needed)
                ahead = ahead + np.maximum(3, ahead // 8)
                if self._limit is not None:
                    ahead = np.minimum(ahead, self._limit)
                self._grow(np.maximum(np.maximum(needed, table.keys.room), ahead))
                table = self._filled()
            table.used = min(table.width, max(table.used + count, int(needed.max())))

    def _grow(self, room: HeadCounts) -> None:
        table = self._filled()
        grown = own(self.view(), room)
        grown.used = table.used
        self._table = grown

    def _write(self, rows: Rows) -> None:
        """Into the last slots of the view, in order."""
        table = self._filled()
        count = int(rows.positions.shape[-1])
        first = torch.arange(table.used - count, table.used, device=table.positions.device)
        table.put(as_table(rows, self._held.shape[1]), first.expand(*self._held.shape, count))

    def _scatter(self, rows: CacheView) -> None:
        """Into the first free slots of each head, which has made room for them before where its own slots end."""
        table = self._filled()
        taken = table.positions[..., : table.used] >= 0
        if rows.shape[2] == 1:
            slots = (~taken).to(torch.uint8).argmax(-1, keepdim=True)
        else:
            slots = taken.to(torch.uint8).argsort(dim=-1, stable=True)[..., : rows.shape[2]]
        table.put(rows, slots)


def _normal_tensors() -> torch.inference_mode:
    """Storage is written in place for the whole request, in and out of `torch.inference_mode`.

    Tensors made inside that mode could be written only there.
    """
    return torch.inference_mode(False)


def _home(rows: CacheView, on_host: bool) -> CacheView:
    return replace(rows, keys=rows.keys.cpu(), values=rows.values.cpu()) if on_host else rows
