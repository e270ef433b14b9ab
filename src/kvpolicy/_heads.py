"""The key/value heads of a layer, of which a process may hold only a share: tensor parallelism.

A process has the arrays of its own heads, [B, H, ...]. What the host counts by head it counts for all of them,
[B, parts * H], so that every process decides alike whether to act, and who gets how much. A stage that combines heads
asks for the arrays of all (`Heads.all`): then every process computes the same numbers in the same order, and keeps the
same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

from ._namespace import along

__all__ = ["UNDIVIDED", "Heads", "all_rows", "own_rows"]


class Heads(Protocol):
    """How the heads of a layer are shared out among processes, in order and evenly."""

    @property
    def parts(self) -> int:
        """Processes that share the heads; 1: this one holds them all."""
        ...

    def all(self, data: Any, /) -> Any:
        """``data`` [B, n, ...] of every process side by side, [B, parts * n, ...], in the order of the heads.

        All processes call it together, with the same shape and dtype.
        """
        ...

    def own(self, data: Any, /) -> Any:
        """Of ``data`` [B, parts * n, ...], numpy or the backend's, what belongs to this process, [B, n, ...]."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Undivided(Heads):
    """One process holds all heads."""

    @property
    def parts(self) -> int:
        """1."""
        return 1

    def all(self, data: Any, /) -> Any:
        """The data."""
        return data

    def own(self, data: Any, /) -> Any:
        """The data."""
        return data


UNDIVIDED = Undivided()


def all_rows(view: Any, data: Any, step: Any) -> tuple[Any, Any, Any]:
    """``data`` [B, H, S] of the rows of all heads, which of these are valid, and their positions.

    One process gives what it has, slot by slot. Several may have different numbers of slots: theirs are put in order of
    arrival, [B, parts * H, N] with N the rows of the fullest head, which the host knows (`Step.held`).
    """
    if step.heads.parts == 1:
        return data, view.valid, view.positions
    xp, rows = view.xp, max(1, int(step.held[view.layer].max()))
    order = xp.argsort(step.ops.arrival_rank(view), axis=-1, stable=True)
    beyond = xp.zeros((*view.shape[:2], max(0, rows - view.shape[2])), dtype=order.dtype, device=order.device)
    order = xp.concat([order, beyond], axis=-1)[..., :rows]
    held = xp.sum(xp.astype(view.valid, xp.int64), axis=-1, keepdims=True)
    there = xp.arange(rows, dtype=xp.int64, device=order.device) < held
    positions = xp.where(there, along(view.positions, order, axis=-1), xp.full_like(order, -1))
    positions = step.heads.all(positions)
    return step.heads.all(along(data, order, axis=-1)), positions >= 0, positions


def own_rows(view: Any, data: Any, step: Any) -> Any:
    """What `all_rows` laid out, brought back to the slots of this process's view, [B, H, S]; anything where invalid."""
    if step.heads.parts == 1:
        return data
    xp, own = view.xp, step.heads.own(data)
    rank = step.ops.arrival_rank(view)
    return along(own, xp.minimum(rank, xp.full_like(rank, own.shape[-1] - 1)), axis=-1)
