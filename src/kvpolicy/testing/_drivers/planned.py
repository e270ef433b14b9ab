"""A plan beside its table, in numpy; and how tables and plans come there and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..._plan import Plan
from ..._protocols import Backend
from ..._types import CacheView
from ...backends.numpy import NumpyBackend
from .._numbers import Arr
from .._outcome import Place, Record
from .._scene import Scene

__all__ = ["Planned", "by_row", "handed", "handed_plan", "in_numpy", "on_host", "table_outcome"]

_ORACLE = NumpyBackend()


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan beside the table that it is for, all in numpy, vectors in float64.

    Attributes:
        view: the table, before.
        plan: what is to happen.
        padding: int64 [B].
        when: which pass, or which of two merges.
    """

    view: CacheView
    plan: Plan
    padding: Arr
    when: int

    @property
    def after(self) -> CacheView:
        """The table that the plan describes, by the oracle.

        Raises:
            PlanError: if it cannot be carried out.
        """
        return _ORACLE.compact(self.view, self.plan, max(1, int(self.plan.keep.sum(-1).max(initial=0))))

    def place(self, b: int, h: int, slot: int = -1) -> Place:
        """Where a row is."""
        token = -1 if slot < 0 else int(self.view.positions[b, h, slot] - self.padding[b])
        return Place(self.when, self.view.layer, b, h, token)


def on_host(plan: Plan, ops: Backend) -> Plan:
    """The plan in numpy."""
    return _converted(plan, ops.host)


def handed_plan(plan: Plan, ops: Backend, device: str | None) -> Plan:
    """A plan in numpy as a backend's."""
    return _converted(plan, lambda data: ops.from_host(data, device=device))


def _converted(plan: Plan, convert: Callable[[Any], Any]) -> Plan:
    names = ("keep", "into", "weight", "self_weight", "key_scale", "value_scale")
    there = {name: data for name in names if (data := getattr(plan, name)) is not None}
    arrays = {name: convert(data) for name, data in there.items()}
    registers = {name: convert(data) for name, data in plan.registers.items()}
    return replace(plan, **arrays, registers=registers)


def in_numpy(view: CacheView, ops: Backend) -> CacheView:
    """A copy in numpy, vectors in float64."""
    return CacheView(
        keys=np.array(ops.host(view.keys), np.float64),
        values=np.array(ops.host(view.values), np.float64),
        positions=np.array(ops.host(view.positions)),
        valid=np.array(ops.host(view.valid)),
        columns={name: replace(c, data=np.array(ops.host(c.data))) for name, c in view.columns.items()},
        registers={name: np.array(ops.host(data)) for name, data in view.registers.items()},
        layer=view.layer,
        num_layers=view.num_layers,
    )


def handed(view: CacheView, dtype: str, ops: Backend, device: str | None) -> CacheView:
    """A numpy table as a backend's."""
    return replace(
        view,
        keys=ops.from_host(view.keys, dtype=dtype, device=device),
        values=ops.from_host(view.values, dtype=dtype, device=device),
        positions=ops.from_host(view.positions, device=device),
        valid=ops.from_host(view.valid, device=device),
        columns={name: replace(c, data=ops.from_host(c.data, device=device)) for name, c in view.columns.items()},
        registers={name: ops.from_host(data, device=device) for name, data in view.registers.items()},
    )


def by_row(scene: Scene, number: int, valid: Arr, named: Mapping[str, Arr]) -> dict[Place, Record]:
    """Named numbers [B, H, S] of one layer, at the valid rows."""
    positions = scene.layers[number].positions
    out: dict[Place, Record] = {}
    for b, h, n in zip(*(axis.tolist() for axis in np.nonzero(valid)), strict=True):
        token = int(positions[b, h, n] - scene.padding[b])
        out[Place(-1, number, b, h, token)] = {name: data[b, h, n] for name, data in named.items()}
    return out


def table_outcome(view: CacheView, padding: Arr, when: int) -> dict[Place, Record]:
    """Keys, values and columns of the valid rows of a numpy table, and its registers where they are set (not NaN)."""
    out: dict[Place, Record] = {}
    columns = {name: column.data for name, column in view.columns.items()}
    for b, h, n in zip(*(axis.tolist() for axis in np.nonzero(view.valid)), strict=True):
        token = int(view.positions[b, h, n] - padding[b])
        record: dict[str, Any] = {"key": view.keys[b, h, n], "value": view.values[b, h, n]}
        out[Place(when, view.layer, b, h, token)] = record | {name: data[b, h, n] for name, data in columns.items()}
    for name, data in view.registers.items():
        for b, h in np.ndindex(*data.shape):
            at = Place(when, view.layer, b, h)
            if not np.isnan(data[b, h]):
                out[at] = {**out.get(at, {}), name: data[b, h]}
    return out
