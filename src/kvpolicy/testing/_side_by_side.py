"""What a session holds against what the slow model holds, number by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._layer import Layer
from .._protocols import Backend
from .._session import Session
from .._types import CacheView
from ..report import LayerReport
from ._numbers import Arr
from ._outcome import Outcome, Place, compare, fail
from ._rows import Table, laid_out
from ._told import ITEMSIZE, SlowLayer
from .model import SlowCache

__all__ = ["compare_layer", "compare_outputs"]

# How far a number may be off that arithmetic has made, by its own dtype: sums have another order. What arithmetic has
# not touched must be the same to the bit, whatever its dtype.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2.0**-8, "bfloat16": 2.0**-5}


@dataclass(frozen=True, slots=True)
class _Dense:
    """The rows of each head in order of arrival, as numpy arrays [B, H, S, ...], the last slots empty."""

    keys: Arr
    values: Arr
    positions: Arr
    valid: Arr
    columns: Mapping[str, Arr]
    rules: Mapping[str, str]


def compare_outputs(got: Arr, due: Arr, valid: Arr, heads: int, place: Place, tokens: Arr, what: str) -> None:
    """What attention gave, [L, B, Hq, Q, Dv], where the query is not padding; ``tokens`` numbers them, [B, Q]."""
    counts = np.broadcast_to(valid[None, :, None, :, None], due.shape)
    if _near(got[counts], due[counts], 1e-9):
        return
    outcomes: list[dict[Place, Any]] = [{}, {}]
    groups = due.shape[2] // heads
    for layer, b, hq, t in np.ndindex(*due.shape[:4]):
        if valid[b, t]:
            at = place._replace(layer=layer, batch_row=b, head=hq // groups, token=int(tokens[b, t]))
            for outcome, data in zip(outcomes, (got, due), strict=True):
                outcome.setdefault(at, {})[f"output of its query head {hq % groups}"] = data[layer, b, hq, t]
    compare(*outcomes, what=what, tolerance=1e-9)


def compare_layer(session: Session, slow: SlowCache, number: int, padding: Arr, place: Place, what: str) -> None:
    """The tables, archives, registers, remembered queries and books of a layer.

    Afterwards the model goes on from the engine's numbers, so that roundings of one pass do not add to those of the
    next: what is compared is always one pass.

    Args:
        session: the engine.
        slow: the model.
        number: of the layer.
        padding: int64 [B].
        place: with the pass.
        what: the model, in words.
    """
    state, ops, place = session._layers[number], session.ops, place._replace(layer=number)
    if slow.length == 0:
        if state.length or state.seen.size or state.store.slots or state.queries is not None:
            fail(place, f"something is left of the request before; in {what} there is nothing.")
        return
    layer = slow.layers[number]
    _rows(state.store.view(), layer.table, ops, padding, place, what, slow.dtype)
    empty = state.archive is None or not state.archive.slots
    if state.archive is not None and not empty:
        _rows(state.archive.view(), layer.archive, ops, padding, place, f"the archive of {what}", slow.dtype)
    elif layer.archive.held.any():
        fail(place, f"the archive is empty; in {what} it holds {int(layer.archive.held.sum())} rows.")
    _registers(state.store.view(), layer.table, ops, place, what)
    if session.all_valid(number) and not ops.host(state.store.view().valid).all():
        fail(place, "the session says that attention needs no mask, and there are padding or empty slots.")
    _books(state, layer, ops, place, what)
    _queries(state, layer, ops, padding, place, what, slow.dtype)
    _report(session.report().layers[number], slow, layer, place, what)


def _report(report: LayerReport, slow: SlowCache, layer: SlowLayer, place: Place, what: str) -> None:
    held = layer.table.held
    due = {
        "rows": float(held.mean()),
        "most": int(held.max()),
        "evicted": int((layer.left - layer.merged).sum()),
        "merged": int(layer.merged.sum()),
        "recalled": layer.recalled,
        "exceeded": int(layer.exceeded.sum()),
        "full_kv_bytes": sum(layer.table.widths) * ITEMSIZE[slow.dtype] * held.size * slow.length,
    }
    got = {name: getattr(report, name) for name in due}
    if got != due:
        compare({place: got}, {place: due}, what=f"the report of {what}")


def _rows(view: CacheView, table: Table, ops: Backend, padding: Arr, place: Place, what: str, dtype: str) -> None:
    got, sheet = _dense(view, ops), laid_out(table)
    due = _Dense(
        sheet.keys,
        sheet.values,
        sheet.positions,
        sheet.valid,
        {name: column.data for name, column in sheet.columns.items()},
        {name: column.on_merge for name, column in sheet.columns.items()},
    )
    names = got.rules == due.rules and got.positions.shape == due.positions.shape
    if names and all(np.array_equal(*pair) for pair in _pairs(got, due)):
        return
    if not (names and _close(got, due, sheet.merged, dtype)):
        _tell(got, due, sheet.merged, dtype, padding, place, what)
    _adopt(got, table)


def _pairs(got: _Dense, due: _Dense) -> Iterator[tuple[Arr, Arr]]:
    """All arrays of both."""
    yield got.positions, due.positions
    yield got.keys, due.keys
    yield got.values, due.values
    for name, data in due.columns.items():
        yield got.columns[name], data


def _close(got: _Dense, due: _Dense, merged: Arr, dtype: str) -> bool:
    """Whether the rows and what is untouched are the same, and all else up to rounding: the quick answer."""
    came = ~merged
    return (
        np.array_equal(got.positions, due.positions)
        and np.array_equal(got.keys[came], due.keys[came])
        and np.array_equal(got.values[came], due.values[came])
        and _near(got.keys, due.keys, TOLERANCE[dtype])
        and _near(got.values, due.values, TOLERANCE[dtype])
        and all(_near(got.columns[n], data, _tolerance(data)) for n, data in due.columns.items())
    )


def _near(got: Arr, due: Arr, tolerance: float) -> bool:
    return bool((np.abs(got - due) <= tolerance * (1 + np.abs(due))).all())


def _tolerance(data: Arr) -> float:
    """By the dtype of a column or register; integers are exact."""
    return TOLERANCE.get(str(data.dtype), 0.0)


def _tell(got: _Dense, due: _Dense, merged: Arr, dtype: str, padding: Arr, place: Place, what: str) -> None:
    """Raise at the first difference: in which rows there are and what came as it is, in what was made, in columns."""
    if got.rules != due.rules:
        fail(place, f"the columns are {dict(got.rules)}; in {what} they are {dict(due.rules)}.")
    for exact in (True, False):
        mine, yours = (_outcome(rows, padding, place, merged, exact=exact) for rows in (got, due))
        compare(mine, yours, what=what, tolerance=0.0 if exact else TOLERANCE[dtype])
    for name, data in due.columns.items():
        mine, yours = (_column(rows, name, padding, place) for rows in (got, due))
        compare(mine, yours, what=what, tolerance=_tolerance(data))


def _dense(view: CacheView, ops: Backend) -> _Dense:
    positions, valid = ops.host(view.positions), ops.host(view.valid)
    most = max(1, int(valid.sum(axis=-1).max()))
    order = np.argsort(np.where(valid, positions, np.iinfo(np.int64).max), axis=-1, kind="stable")[..., :most]
    there = np.take_along_axis(valid, order, axis=-1)

    def sorted_(data: Any) -> Arr:
        rows = ops.host(data)
        picked = np.take_along_axis(rows, order.reshape(*order.shape, *(1,) * (rows.ndim - 3)), axis=2)
        return np.where(there.reshape(*there.shape, *(1,) * (rows.ndim - 3)), picked, np.zeros_like(picked))

    return _Dense(
        keys=np.asarray(sorted_(view.keys), np.float64),
        values=np.asarray(sorted_(view.values), np.float64),
        positions=np.where(there, np.take_along_axis(positions, order, axis=-1), -1),
        valid=there,
        columns={name: sorted_(column.data) for name, column in view.columns.items()},
        rules={name: column.on_merge for name, column in view.columns.items()},
    )


def _outcome(rows: _Dense, padding: Arr, place: Place, merged: Arr, *, exact: bool) -> Outcome:
    """Keys and values of each row: of those that came as they are (``exact``), or of those that arithmetic has made.

    The others are named without numbers: which rows there are is compared exactly.
    """
    out: dict[Place, dict[str, Arr]] = {}
    for b, h, s in np.argwhere(rows.valid).tolist():
        at = place._replace(batch_row=b, head=h, token=int(rows.positions[b, h, s] - padding[b]))
        made = s < merged.shape[2] and bool(merged[b, h, s])
        out[at] = {} if made == exact else {"key": rows.keys[b, h, s], "value": rows.values[b, h, s]}
    return out


def _column(rows: _Dense, name: str, padding: Arr, place: Place) -> Outcome:
    return {
        place._replace(batch_row=b, head=h, token=int(rows.positions[b, h, s] - padding[b])): {
            name: rows.columns[name][b, h, s]
        }
        for b, h, s in np.argwhere(rows.valid).tolist()
    }


def _adopt(rows: _Dense, table: Table) -> None:
    """The model's rows get the engine's numbers, which are the same up to rounding."""
    for b, heads in enumerate(table.heads):
        for h, line in enumerate(heads):
            for s, row in enumerate(line):
                row.key, row.value, row.merged = rows.keys[b, h, s], rows.values[b, h, s], False
                row.columns = {name: float(data[b, h, s]) for name, data in rows.columns.items()}


def _registers(view: CacheView, table: Table, ops: Backend, place: Place, what: str) -> None:
    got = {name: ops.host(data) for name, data in view.registers.items()}
    for name in {**got, **table.registers}:
        mine, yours = got.get(name), table.registers.get(name)
        if mine is not None and yours is not None and np.array_equal(mine, yours, equal_nan=True):
            continue
        like = next(data for data in (mine, yours) if data is not None)
        outcomes = [
            {
                place._replace(batch_row=b, head=h): {f"register {name!r}": None if data is None else data[b, h]}
                for b, h in np.ndindex(*like.shape)
            }
            for data in (mine, yours)
        ]
        compare(*outcomes, what=what, tolerance=_tolerance(like))
    table.registers.update(got)


def _books(state: Layer, layer: SlowLayer, ops: Backend, place: Place, what: str) -> None:
    """Everything that is counted, of the layer, of each batch row and of each head."""
    batch, heads = layer.table.held.shape
    merged = np.zeros(batch, np.int64) if state.merged is None else ops.host(state.merged)
    mine: list[Mapping[str, Any]] = [
        {"recalled": state.recalled},
        {**{name: getattr(state, name) for name in ("seen", "prompt", "left", "exceeded")}, "merged": merged},
        {name: getattr(state, name) for name in ("held", "prompt_kept", "prompt_quota", "archived")},
    ]
    yours: list[Mapping[str, Any]] = [
        {"recalled": layer.recalled},
        {name: getattr(layer, name) for name in mine[1]},
        {
            "held": layer.table.held,
            "prompt_kept": layer.prompt_kept,
            "prompt_quota": layer.prompt_quota,
            "archived": layer.archive.held,
        },
    ]
    if all(_listed(mine[n][name]) == _listed(yours[n][name]) for n in range(3) for name in yours[n]):
        return
    outcomes: list[dict[Place, Any]] = [{}, {}]
    for outcome, (whole, rows, cells) in zip(outcomes, (mine, yours), strict=True):
        outcome[place] = whole
        for b in range(batch):
            outcome[place._replace(batch_row=b)] = {name: _at(data, b) for name, data in rows.items()}
            for h in range(heads):
                at = place._replace(batch_row=b, head=h)
                outcome[at] = {name: _at(data, b, h) for name, data in cells.items()}
    compare(*outcomes, what=what)
    fail(place, f"the books have another shape than in {what}.")


def _listed(data: Any) -> Any:
    return data.tolist() if isinstance(data, np.ndarray) else data


def _at(data: Arr, *index: int) -> Any:
    """A number, or None where there is none."""
    return data[index] if all(n < size for n, size in zip(index, data.shape, strict=False)) else None


def _queries(state: Layer, layer: SlowLayer, ops: Backend, padding: Arr, place: Place, what: str, dtype: str) -> None:
    """Those that are remembered, of each batch row."""
    mine: dict[Place, Any] = {}
    if (asked := state.queries) is not None:
        vectors, places, valid = ops.host(asked.vectors), ops.host(asked.positions), ops.host(asked.valid)
        for b, t in np.argwhere(valid).tolist():
            at = place._replace(batch_row=b, token=int(places[b, t] - padding[b]))
            mine[at] = {"remembered query": vectors[b, :, t]}
    yours = {
        place._replace(batch_row=b, token=int(position - padding[b])): {"remembered query": query}
        for b, known in enumerate(layer.asked)
        for position, query in known
    }
    compare(mine, yours, what=what)
