"""The rows of a layer where they lie in memory, and how rows become such a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._types import CacheView, Column, HeadCounts, Rows
from ._torch_vectors import Block, Ragged, Vectors, laid_out, slots_for, widened

__all__ = ["StoredTable", "as_table", "borrow", "own"]


@dataclass(slots=True)
class StoredTable:
    """The physical table. Scalars are [B, H, width], where the width is the room of the roomiest head.

    The first ``used`` slots make up the view.
    """

    keys: Vectors
    values: Vectors
    positions: Tensor
    valid: Tensor
    columns: dict[str, Column]
    used: int
    borrowed: bool = False  # keys and values belong to the model
    rank: Tensor | None = None  # int64 [B, 1, S], of a table in which nothing has moved yet

    @property
    def width(self) -> int:
        return int(self.positions.shape[-1])

    def nbytes(self) -> tuple[int, int]:
        """Bytes of the tensors held: keys and values; positions, validity, columns and where ragged heads begin."""
        scalars = [self.positions, self.valid, *(column.data for column in self.columns.values())]
        scalars += [] if self.rank is None else [self.rank]
        for vectors in (self.keys, self.values):
            scalars += [vectors.base, vectors.length] if isinstance(vectors, Ragged) else []
        return self.keys.data.nbytes + self.values.data.nbytes, sum(tensor.nbytes for tensor in scalars)

    def put(self, rows: CacheView, slots: Tensor) -> None:
        """Rows with their scalars into these slots, [B, H, R]."""
        self.keys.write(slots, rows.keys)
        self.values.write(slots, rows.values)
        self.positions.scatter_(-1, slots, rows.positions)
        self.valid.scatter_(-1, slots, rows.valid)
        for name in {**self.columns, **rows.columns}:
            if name not in self.columns:  # a column that these rows are the first to bring: zero for all the others
                new = rows.columns[name]
                self.columns[name] = replace(new, data=new.data.new_zeros(self.positions.shape))
            room = self.columns[name].data
            data = rows.columns[name].data if name in rows.columns else torch.zeros_like(slots)
            room.scatter_(-1, slots, data.to(room.dtype))


def as_table(rows: Rows, heads: int) -> CacheView:
    """New rows with the same scalars for every head; each stands for one token."""
    shape = (rows.keys.shape[0], heads, rows.positions.shape[-1])
    columns = {name: Column(data[:, None].expand(shape)) for name, data in rows.columns.items()}
    columns["count"] = Column(rows.valid[:, None].expand(shape).float(), on_merge="sum")
    return CacheView(
        keys=rows.keys,
        values=rows.values,
        positions=rows.positions[:, None].expand(shape),
        valid=rows.valid[:, None].expand(shape),
        columns=columns,
    )


def borrow(rows: Rows) -> StoredTable:
    """The model's own keys and values, of which nothing is copied, and scalars that are the table's."""
    view = as_table(rows, int(rows.keys.shape[1]))
    return StoredTable(
        keys=Block(view.keys),
        values=Block(view.values),
        positions=view.positions.clone(),  # all layers share rows.positions: never write there
        valid=view.valid.clone(),
        columns={name: replace(column, data=column.data.clone()) for name, column in view.columns.items()},
        used=view.shape[2],
        borrowed=True,
        rank=_in_order(rows.valid)[:, None],
    )


def _in_order(valid: Tensor) -> Tensor:
    """int64 [B, S]: ranks of rows that stand in order of arrival."""
    return torch.where(valid, valid.cumsum(-1) - 1, valid.shape[-1])


def own(view: CacheView, room: HeadCounts, *, fresh: bool = False) -> StoredTable:
    """A storage for the rows of a view, with this much room for each head; a ``fresh`` view that fits becomes it."""
    width = int(room.max())
    if fresh and view.shape[2] == width and slots_for(room) == room.size * width:
        keys: Vectors = Block(view.keys)
        values: Vectors = Block(view.values)
    else:
        keys, values = laid_out(view.keys, room), laid_out(view.values, room)
    width = int(keys.room.max())

    def fitted(data: Tensor, empty: int) -> Tensor:
        return data if fresh and data.shape[-1] == width else widened(data, width, empty)

    return StoredTable(
        keys=keys,
        values=values,
        positions=fitted(view.positions, -1),
        valid=fitted(view.valid, 0),
        columns={name: replace(c, data=fitted(c.data, 0)) for name, c in view.columns.items()},
        used=min(width, view.shape[2]),
    )
