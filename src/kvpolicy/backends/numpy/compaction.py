"""The table that a plan describes, head by head and row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ..._errors import PlanError
from ..._plan import Plan
from ..._types import Array, CacheView
from .rows import by_arrival

__all__ = ["compacted"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class _Fold:
    """One row folding into another: with what weight, and with what share of its summed columns."""

    source: int
    weight: float
    share: float


def compacted(view: CacheView, plan: Plan, rows: int) -> CacheView:
    """See `NumpyBackend.compact`."""
    if np.shape(plan.keep) != view.shape:
        raise PlanError(f"Plan.keep has shape {np.shape(plan.keep)}; the table has {view.shape}.")
    batch, heads, _ = view.shape
    out = CacheView(
        keys=np.zeros((batch, heads, rows, view.keys.shape[3]), dtype=view.keys.dtype),
        values=np.zeros((batch, heads, rows, view.values.shape[3]), dtype=view.values.dtype),
        positions=np.full((batch, heads, rows), -1, dtype=np.int64),
        valid=np.zeros((batch, heads, rows), dtype=bool),
        columns={
            name: replace(column, data=np.zeros((batch, heads, rows), dtype=column.data.dtype))
            for name, column in view.columns.items()
        },
        registers={**view.registers, **plan.registers},
        layer=view.layer,
        num_layers=view.num_layers,
    )
    for b, h in np.ndindex(batch, heads):
        kept = _kept_rows(view, plan, rows, b, h)
        folds = _folds(view, plan, b, h)
        for slot, n in enumerate(kept):
            into_n = folds.get(n, [])
            own = 1.0 if plan.into is None or plan.self_weight is None else float(plan.self_weight[b, h, n])
            values, keys = view.values[b, h], view.keys[b, h]
            out.values[b, h, slot] = _scale(plan.value_scale, b, h, n) * _merged(values, n, own, into_n)
            out.keys[b, h, slot] = (
                _scale(plan.key_scale, b, h, n) * _merged(keys, n, own, into_n) if plan.merge_keys else keys[n]
            )
            out.positions[b, h, slot] = view.positions[b, h, n]
            out.valid[b, h, slot] = True
            for name, column in view.columns.items():
                data = column.data[b, h]
                value = data[n]
                if column.on_merge == "sum":
                    value = float(value) + sum(fold.share * float(data[fold.source]) for fold in into_n)
                out.columns[name].data[b, h, slot] = value
    return out


def _kept_rows(view: CacheView, plan: Plan, rows: int, b: int, h: int) -> list[int]:
    kept = [n for n in range(view.shape[2]) if plan.keep[b, h, n]]
    where = f"layer {view.layer}, batch row {b}, head {h}"
    if len(kept) > rows:
        raise PlanError(f"Plan.keep has {len(kept)} rows at {where}; at most {rows} may stay.")
    padding = [n for n in kept if not view.valid[b, h, n]]
    if padding:
        raise PlanError(f"Plan.keep has rows {padding} at {where}, which are padding; keep valid rows only.")
    return by_arrival(view, b, h, kept)


def _folds(view: CacheView, plan: Plan, b: int, h: int) -> dict[int, list[_Fold]]:
    """For each kept row that anything folds into: what does."""
    folds: dict[int, list[_Fold]] = {}
    if plan.into is None or plan.weight is None:
        return folds
    rows, where = view.shape[2], f"at layer {view.layer}, batch row {b}, head {h}"
    for s in range(rows):
        targets = [(m, n) for m, n in enumerate(plan.into[b, h, s].tolist()) if n >= 0]
        for m, n in targets:
            if plan.keep[b, h, s] or not view.valid[b, h, s]:
                kind = "kept" if plan.keep[b, h, s] else "padding"
                raise PlanError(f"Plan.into folds row {s} {where}, which is {kind}; only dropped valid rows fold.")
            if n >= rows or not plan.keep[b, h, n]:
                raise PlanError(f"Plan.into folds row {s} into row {n} {where}, which is not kept.")
            folds.setdefault(n, []).append(_Fold(s, float(plan.weight[b, h, s, m]), 1.0 / len(targets)))
    return folds


def _scale(scale: Array | None, b: int, h: int, n: int) -> float:
    return 1.0 if scale is None else float(scale[b, h, n])


def _merged(vectors: _Array, n: int, own: float, folds: list[_Fold]) -> _Array:
    """``own * row[n]`` plus what folds into it, in float64, from rows [S, D]."""
    out: _Array = own * vectors[n].astype(np.float64)
    for fold in folds:
        out = out + fold.weight * vectors[fold.source].astype(np.float64)
    return out
