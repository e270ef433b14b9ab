"""How the keys or values of a layer lie in memory: a block of equal heads, or rows one head after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .._types import HeadCounts

__all__ = ["Block", "Ragged", "Vectors", "Window", "laid_out", "slots_for", "widened"]


@final
@dataclass(frozen=True, slots=True)
class Block:
    """Every head has the same number of slots: ``data`` is [B, H, C, D], and a window costs nothing."""

    data: Tensor

    @property
    def room(self) -> HeadCounts:
        """C everywhere."""
        return np.full(tuple(self.data.shape[:2]), self.data.shape[2], dtype=np.int64)

    def window(self, used: int) -> Tensor:
        """A view of the storage."""
        return self.data[:, :, :used]

    def write(self, slot: Tensor, new: Tensor) -> None:
        """In place."""
        spot = slot[..., None].expand(-1, -1, -1, self.data.shape[-1])
        self.data.scatter_(2, spot.to(self.data.device), new.to(self.data))


@final
@dataclass(frozen=True, slots=True)
class Ragged:
    """Heads of different lengths, one after another: ``data`` is [sum of room, D], and a window is gathered when read.

    The memory that is held is that of the rows; a window that was read is a copy that lives for one pass of one layer.
    """

    data: Tensor
    room: HeadCounts
    base: Tensor  # int64 [B, H], where each head begins
    length: Tensor  # int64 [B, H], its slots: the room, where a kernel can see it
    nothing: Tensor  # a NaN: see `Window`

    def window(self, used: int) -> Window:
        """The first slots of each head, which may end before."""
        window = self.nothing.expand(*self.room.shape, used, self.data.shape[1]).as_subclass(Window)
        window.ragged, window.gathered = self, None
        return window

    def gather(self, used: int) -> Tensor:
        """[B, H, used, D], a copy; slots beyond a head's room repeat its last one."""
        slots = torch.arange(used, device=self.data.device)
        index = self.base[..., None] + torch.minimum(slots, self.length[..., None] - 1)
        return self.data.index_select(0, index.flatten()).reshape(*self.room.shape, used, -1)

    def write(self, slot: Tensor, new: Tensor) -> None:
        """In place."""
        index = self.base[..., None] + slot.to(self.data.device)
        self.data[index.flatten()] = new.to(self.data).flatten(0, 2)


@final
class Window(Tensor):
    """[B, H, S, D], the first slots of `Ragged` heads: a tensor whose rows are gathered at the first look at them.

    So a pass that needs none, or leaves it to a kernel to read ``ragged``, copies nothing. Like the window of a `Block`
    it is good until the storage is written again.

    To torch itself it is a NaN that is repeated: what goes past ``__torch_function__`` cannot take that for rows.
    """

    ragged: Ragged
    gathered: Tensor | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Anything but a question for shape, dtype or device is asked of the gathered copy."""
        if func in _NO_LOOK:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        args, kwargs = tree_map(_looked_at, (args, kwargs or {}))
        return func(*args, **kwargs)


_NO_LOOK = [Tensor.size, *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device"))]


def _looked_at(leaf: Any) -> Any:
    if not isinstance(leaf, Window):
        return leaf
    if leaf.gathered is None:
        leaf.gathered = leaf.ragged.gather(leaf.shape[2])
    return leaf.gathered


Vectors: TypeAlias = Block | Ragged


def slots_for(room: HeadCounts) -> int:
    """Slots that `laid_out` takes: those of equal heads, unless they would waste an eighth or more."""
    ragged, equal = int(room.sum()), room.size * int(room.max())
    return ragged if ragged * 8 <= equal * 7 else equal


def laid_out(window: Tensor, room: HeadCounts) -> Vectors:
    """The rows of ``window`` [B, H, S, D] in a new storage with this much room for each head (numpy [B, H], >= 1)."""
    heads, most = room.size, int(room.max())
    rows, dim = window.shape[2:]
    if slots_for(room) == heads * most:
        block = window.new_zeros(*window.shape[:2], most, dim)
        fits = min(most, rows)
        block[:, :, :fits] = window[:, :, :fits]
        return Block(block)
    ends = np.cumsum(room.ravel())
    slots = np.arange(ends[-1]) - np.repeat(ends - room.ravel(), room.ravel())
    source = np.repeat(np.arange(heads), room.ravel()) * rows + np.minimum(slots, rows - 1)
    data = window.flatten(0, 2).index_select(0, torch.from_numpy(source).to(window.device))
    base = torch.from_numpy((ends - room.ravel()).reshape(room.shape)).to(window.device)
    length = torch.tensor(room, device=window.device)
    return Ragged(data, room, base, length, nothing=data.new_full((), torch.nan))


def widened(scalars: Tensor, width: int, empty: int) -> Tensor:
    """[B, H, S] with ``width`` slots; new ones are ``empty``."""
    out = scalars.new_full((*scalars.shape[:2], width), empty)
    fits = min(width, scalars.shape[-1])
    out[..., :fits] = scalars[..., :fits]
    return out
