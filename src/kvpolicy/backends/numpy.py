"""The oracle: every verb as the loop that its formula says, in float64.

Slow and plain on purpose. It shares no code with any other backend, because an oracle that shares its subject's code
proves nothing; and it refuses (`PlanError`) what a faster backend may carry out without looking.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, final

import numpy as np

from .._errors import BackendUnavailableError, CacheError, PlanError
from .._protocols import Backend, Store
from .._types import Array, CacheView, Column, HeadCounts, KeepMask, Plan, Quota, Rows, Scores, Step

__all__ = ["NumpyBackend", "NumpyStore"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class _Fold:
    """One row folding into another: with what weight, and with what share of its summed columns."""

    source: int
    weight: float
    share: float


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
        self._table = NumpyBackend().compact(self.view(), plan, int(kept.max()))

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


@final
@dataclass(frozen=True, slots=True)
class NumpyBackend(Backend):
    """Plain loops over batch rows, heads and rows: what every other backend is compared with."""

    @property
    def name(self) -> str:
        """``numpy``."""
        return "numpy"

    def store(self, layer: int, num_layers: int, /, *, on_host: bool = False) -> NumpyStore:
        """An empty store; numpy is host memory anyway."""
        return NumpyStore(layer, num_layers)

    def host(self, data: Array, /) -> np.ndarray[Any, Any]:
        """The data itself, as a numpy array."""
        return np.asarray(data)

    def from_host(self, data: _Array, /, *, dtype: str | None = None, device: Any = None) -> Array:
        """A copy; there is no other device than the host.

        Raises:
            BackendUnavailableError: if numpy has no such dtype (``"bfloat16"``).
        """
        try:
            return np.array(data, dtype=dtype)
        except TypeError as error:
            raise BackendUnavailableError(f"backend='numpy' has no dtype {dtype!r}. Hint: backend='torch'.") from error

    def attention_mass(
        self,
        view: CacheView,
        step: Step,
        /,
        *,
        weights: Array | None = None,
        group: Literal["mean", "max"] = "mean",
        above: float | None = None,
    ) -> Scores:
        """Column sums of the causal attention of the step's valid queries, float64 [B, H, S].

        Args:
            view: the table.
            step: the pass, with its queries.
            weights: [B, Q], how often each query counts; None: once.
            group: how the column sums of the query heads that share a key/value head become one.
            above: sum, instead of the attention, whether it is at least this share of the most its query pays.
        """
        batch, heads, rows = view.shape
        per_head = step.queries.shape[1] // heads
        mass = np.zeros((batch, heads, rows))
        for b, h in np.ndindex(batch, heads):
            sums = np.zeros((per_head, rows))  # one line of column sums for each query head of this group
            for g in range(per_head):
                for i in np.flatnonzero(step.query_valid[b]).tolist():
                    paid = _attention(view, step, b, h * per_head + g, i)
                    if above is not None:
                        most = above * paid.max()
                        paid = np.array([float(_sees(view, step, b, h, i, n) and paid[n] >= most) for n in range(rows)])
                    sums[g] += paid if weights is None else float(weights[b, i]) * paid
            mass[b, h] = sums.max(axis=0) if group == "max" else sums.mean(axis=0)
        return mass

    def most_similar(self, view: CacheView, rows: KeepMask, anchors: KeepMask, /) -> tuple[Array, Array]:
        """The anchor of highest cosine similarity for each marked row, ties to the earliest; -1 and 0 elsewhere."""
        into = np.full(view.shape, -1, dtype=np.int64)
        similarity = np.zeros(view.shape)
        for b, h in np.ndindex(*view.shape[:2]):
            there = _by_arrival(view, b, h, [n for n in _valid_rows(view, b, h) if anchors[b, h, n]])
            for s in _valid_rows(view, b, h):
                if rows[b, h, s]:
                    for n in there:
                        cosine = _cosine(view.keys[b, h, s], view.keys[b, h, n])
                        if into[b, h, s] < 0 or cosine > similarity[b, h, s]:
                            into[b, h, s], similarity[b, h, s] = n, cosine
        return into, similarity

    def top_k(
        self,
        scores: Scores,
        quota: Quota,
        view: CacheView,
        /,
        *,
        surplus: int | None = None,
        first: int = 0,
        last: Array = 0,
    ) -> KeepMask:
        """The ``quota`` best valid rows of each head, all of them where there are no more; ties: the later arrival.

        They are sorted whatever ``surplus`` promises. Protected rows come first, and the others have what they leave.
        """
        keep = np.zeros(view.shape, dtype=bool)
        for b, h in np.ndindex(*view.shape[:2]):
            held = _by_arrival(view, b, h, _valid_rows(view, b, h))
            end = int(last if np.ndim(last) == 0 else last[b, h])
            protected = {n for place, n in enumerate(held) if place < first or place >= len(held) - end}
            best = [(float(scores[b, h, n]), int(view.positions[b, h, n]), n) for n in held if n not in protected]
            best.sort(key=lambda row: (-row[0], -row[1], row[2]))
            for n in (*protected, *(n for _, _, n in best[: max(0, int(quota[b, h]) - len(protected))])):
                keep[b, h, n] = True
        return keep

    def arrival_rank(self, view: CacheView, /) -> Array:
        """int64 [B, H, S]: how many valid rows of the head arrived before this one; S for invalid rows."""
        if view.rank is not None:
            return view.rank
        rank = np.full(view.shape, view.shape[2], dtype=np.int64)
        for b, h in np.ndindex(*view.shape[:2]):
            for place, n in enumerate(_by_arrival(view, b, h, _valid_rows(view, b, h))):
                rank[b, h, n] = place
        return rank

    def nearest_position(self, view: CacheView, keep: KeepMask, /) -> Array:
        """int64 [B, H, S]: the kept row nearest by arrival, ties to the earlier; -1 for invalid rows or if none."""
        nearest = np.full(view.shape, -1, dtype=np.int64)
        for b, h in np.ndindex(*view.shape[:2]):
            position = view.positions[b, h].tolist()
            kept = [n for n in _valid_rows(view, b, h) if keep[b, h, n]]
            for s in _valid_rows(view, b, h):
                if kept:
                    _, _, nearest[b, h, s] = min((abs(position[s] - position[n]), position[n], n) for n in kept)
        return nearest

    def segment_sum(self, data: Array, index: Array, /) -> Array:
        """``out[b, h, n] = sum of data[b, h, s, m] over index[b, h, s, m] == n``, float64; index -1 is left out."""
        out = np.zeros(index.shape[:3])
        for b, h, s, m in np.ndindex(*index.shape):
            if index[b, h, s, m] >= 0:
                out[b, h, index[b, h, s, m]] += float(data[b, h, s, m])
        return out

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        """The table that the plan describes, in ``rows`` rows, in the order of arrival, empty slots last.

        Raises:
            PlanError: if a head keeps more than ``rows`` rows or keeps padding; if anything but a dropped valid row
                folds, or folds into anything but a kept row.
        """
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


def _valid_rows(view: CacheView, b: int, h: int) -> list[int]:
    return [n for n in range(view.shape[2]) if view.valid[b, h, n]]


def _by_arrival(view: CacheView, b: int, h: int, rows: list[int]) -> list[int]:
    return [n for _, n in sorted((int(view.positions[b, h, n]), n) for n in rows)]


def _sees(view: CacheView, step: Step, b: int, h: int, i: int, n: int) -> bool:
    last = step.query_positions if step.query_reach is None else step.query_reach
    return bool(view.valid[b, h, n] and view.positions[b, h, n] <= last[b, i])


def _attention(view: CacheView, step: Step, b: int, hq: int, i: int) -> _Array:
    """What query ``i`` of query head ``hq`` pays to each row of its key/value head; zeros if it sees none."""
    h = hq // (step.queries.shape[1] // view.shape[1])
    paid = np.zeros(view.shape[2])
    query = np.asarray(step.queries[b, hq, i], dtype=np.float64)
    logits: dict[int, float] = {}
    for n in _valid_rows(view, b, h):
        if _sees(view, step, b, h, i, n):
            logits[n] = step.scale * float(query @ np.asarray(view.keys[b, h, n], dtype=np.float64))
            if step.softcap is not None:
                logits[n] = step.softcap * math.tanh(logits[n] / step.softcap)
            if step.count_bias:
                logits[n] += math.log(view.column("count", needed_by="attention_mass")[b, h, n])
    if logits:
        rivals = [] if step.sinks is None else [float(step.sinks[hq])]  # they take their share and pay no row
        top = max([*logits.values(), *rivals])
        total = sum(math.exp(logit - top) for logit in [*logits.values(), *rivals])
        for n, logit in logits.items():
            paid[n] = math.exp(logit - top) / total
    return paid


def _kept_rows(view: CacheView, plan: Plan, rows: int, b: int, h: int) -> list[int]:
    kept = [n for n in range(view.shape[2]) if plan.keep[b, h, n]]
    where = f"layer {view.layer}, batch row {b}, head {h}"
    if len(kept) > rows:
        raise PlanError(f"Plan.keep has {len(kept)} rows at {where}; at most {rows} may stay.")
    padding = [n for n in kept if not view.valid[b, h, n]]
    if padding:
        raise PlanError(f"Plan.keep has rows {padding} at {where}, which are padding; keep valid rows only.")
    return _by_arrival(view, b, h, kept)


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


def _cosine(one: _Array, other: _Array) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
    return float(one @ other) / lengths if lengths > 0 else 0.0


def _merged(vectors: _Array, n: int, own: float, folds: list[_Fold]) -> _Array:
    """``own * row[n]`` plus what folds into it, in float64, from rows [S, D]."""
    out: _Array = own * vectors[n].astype(np.float64)
    for fold in folds:
        out = out + fold.weight * vectors[fold.source].astype(np.float64)
    return out
