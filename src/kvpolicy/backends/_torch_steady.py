"""Rows of one layer in tensors that keep their shapes and their places in memory, for decoding that is compiled.

Between two tokens the slot of the next row is prepared: its scalars are written already, so that a pass has only to
put its key and value there before it attends. What a plan changes is written once, at the end of a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from .._errors import CacheError
from .._plan import Plan
from .._types import CacheView, Column, HeadCounts
from ._torch_vectors import Ragged, Vectors, laid_out, widened

__all__ = ["SteadyTable"]


@final
class SteadyTable:
    """The table of a layer while decoding.

    Args:
        view: its rows, the valid ones first and in order of arrival.
        room: int64 [B, H] (numpy), the most rows that each head will hold at once.
        position: arrival index of the next token.
    """

    def __init__(self, view: CacheView, room: HeadCounts, position: int) -> None:
        self.keys, self.values = laid_out(view.keys, room), laid_out(view.values, room)
        width, device = int(room.max()), view.positions.device
        self.slots = torch.arange(width, device=device)
        self._batch, self._heads = (torch.arange(count, device=device) for count in view.shape[:2])
        self.inside = self.slots < torch.from_numpy(room).to(device)[..., None]
        self.positions = widened(torch.where(view.valid, view.positions, -1), width, -1)
        self.valid = self.positions >= 0
        self.held = self.valid.sum(-1)
        self.rank = torch.where(self.valid, self.slots, width)
        self.columns = {name: replace(c, data=widened(c.data, width, 0)) for name, c in view.columns.items()}
        self.registers = dict(view.registers)
        self.free = torch.zeros_like(self.held)
        self.layer, self.num_layers, self.alike = view.layer, view.num_layers, view.alike
        self._write(self.positions, self.rank, {n: c.data for n, c in self.columns.items()}, torch.tensor(position))
        fixed = [self.slots, self.inside, self._batch, self._heads, *_layout(self.keys), *_layout(self.values)]
        for tensor in (self.keys.data, self.values.data, *self.scalars(), *fixed):
            torch._dynamo.mark_static_address(tensor)

    def scalars(self) -> list[Tensor]:
        """All that is written to besides keys and values, each [B, H] or [B, H, S]."""
        columns = [column.data for column in self.columns.values()]
        return [self.positions, self.valid, self.rank, self.held, self.free, *columns]

    def put(self, keys: Tensor, values: Tensor) -> CacheView:
        """The key and value [B, H, 1, D] of the next row into its slot; returns the table to attend over."""
        self._place(self.keys, keys)
        self._place(self.values, values)
        return self.view()

    def _place(self, vectors: Vectors, new: Tensor) -> None:
        if isinstance(vectors, Ragged):
            vectors.write(self.free[..., None], new)
        else:  # not scattered: a compiler would copy the whole storage for that
            vectors.data[self._batch[:, None], self._heads, self.free] = new[:, :, 0].to(vectors.data.dtype)

    def view(self) -> CacheView:
        """The table, all slots of it."""
        width = int(self.slots.shape[0])
        return CacheView(
            keys=self.keys.window(width),
            values=self.values.window(width),
            positions=self.positions,
            valid=self.valid,
            columns=dict(self.columns),
            registers=self.registers,
            layer=self.layer,
            num_layers=self.num_layers,
            rank=self.rank,
            alike=self.alike,
        )

    def apply(self, columns: Mapping[str, Column], plan: Plan | None, surplus: int, position: Tensor) -> None:
        """The columns that were observed, then a plan that takes at most ``surplus`` rows from a head.

        Then the slot of the next token, which arrives at ``position``, is prepared.
        """
        known = {name: columns.get(name, column).data for name, column in self.columns.items()}
        positions, rank = self.positions, self.rank
        if plan is not None:
            gone = self.valid & ~plan.keep
            rank = rank - _behind(rank, gone, surplus)
            positions = torch.where(gone, -1, positions)
        self._write(positions, torch.where(positions >= 0, rank, self.slots.shape[0]), known, position)

    def _write(self, positions: Tensor, rank: Tensor, columns: Mapping[str, Tensor], position: Tensor) -> None:
        """Scalars as they are from now on, with a row for the next token in the first empty slot of each head."""
        width = self.slots.shape[0]
        taken = positions >= 0
        held = taken.sum(-1)
        free = torch.where(taken | ~self.inside, width, self.slots).amin(-1)
        here = self.slots == free[..., None]
        self.positions.copy_(torch.where(here, position.to(positions.device), positions))
        self.valid.copy_(taken | here)
        self.rank.copy_(torch.where(here, held[..., None], rank))
        self.held.copy_(held)
        self.free.copy_(free)
        for name, column in self.columns.items():
            column.data.copy_(torch.where(here, int(name == "count"), columns[name]))

    def rows(self) -> CacheView:
        """The table as it is between two tokens, without the slot that is prepared."""
        view, ahead = self.view(), self.slots == self.free[..., None]
        valid = self.valid & ~ahead
        return replace(view, valid=valid, positions=torch.where(valid, self.positions, -1), rank=None)

    def select_batch(self, index: Tensor) -> None:
        """As many batch rows as there are, in this order, in place.

        Raises:
            CacheError: if the heads of one batch row have other room than those of the one whose place they take.
        """
        moving = [*self.scalars(), *self.registers.values()]
        for vectors in (self.keys, self.values):
            if isinstance(vectors, Ragged):
                vectors.data.copy_(vectors.data.index_select(0, _moved(vectors, index)))
            else:
                moving.append(vectors.data)
        for tensor in moving:
            tensor.copy_(tensor.index_select(0, index.to(tensor.device)))

    @property
    def capacity(self) -> float:
        """Slots per head, on average."""
        return float(self.keys.room.mean())

    def nbytes(self) -> tuple[int, int]:
        """Bytes of the tensors held: keys and values; all others."""
        return self.keys.data.nbytes + self.values.data.nbytes, sum(tensor.nbytes for tensor in self.scalars())


def _behind(rank: Tensor, gone: Tensor, surplus: int) -> Tensor:
    """For each row how many of the rows that leave were before it."""
    if surplus == 1:
        first = torch.where(gone, rank, rank.shape[-1]).amin(-1, keepdim=True)
        return (rank > first).to(rank.dtype)
    place = torch.where(rank < rank.shape[-1], rank, 0)
    by_rank = torch.zeros_like(rank).scatter_add_(-1, place, gone.to(rank.dtype))
    return (by_rank.cumsum(-1) - by_rank).gather(-1, place)


def _layout(vectors: Vectors) -> list[Tensor]:
    """What says where ragged heads are."""
    return [vectors.base, vectors.length] if isinstance(vectors, Ragged) else []


def _moved(vectors: Ragged, index: Tensor) -> Tensor:
    """Where each row of the flat storage comes from when batch rows change places."""
    chosen = index.cpu().numpy()
    if (vectors.room[chosen] != vectors.room).any():
        raise CacheError(
            "batch rows whose heads have different room cannot change places in compiled decoding. Hint: beam search "
            "without compile_decode, or prompts of the same length."
        )
    by = (vectors.base.index_select(0, index.to(vectors.base.device)) - vectors.base).flatten()
    rows = torch.arange(len(vectors.data), device=by.device)
    return rows + by.repeat_interleave(vectors.length.flatten())
