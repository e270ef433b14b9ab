"""Tables as plain lists of rows, what a stage is shown of them, and a Plan carried out by its formula, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from .._plan import Plan
from .._protocols import Backend
from .._types import EMPTY, Array, CacheView, Column
from ._numbers import Arr, rounded

__all__ = ["Heads", "Row", "Sheet", "Table", "attend", "carry_out", "laid_out"]


@dataclass(slots=True)
class Row:
    """One row of one head; its numbers are float64, and such that the cache's dtype holds them."""

    position: int
    key: Arr
    value: Arr
    columns: dict[str, float]
    merged: bool = False  # made by arithmetic, and so right up to rounding


Heads: TypeAlias = list[list[list[Row]]]  # of each batch row and head, oldest first
Slots: TypeAlias = list[list[list[Row | None]]]  # the row in each slot; None: padding or an empty slot


@dataclass(slots=True)
class Table:
    """The rows of one layer."""

    heads: Heads
    widths: tuple[int, int]  # key and value dim
    kinds: dict[str, tuple[Any, Any]] = field(default_factory=lambda: {"count": ("float32", "sum")})  # dtype, on_merge
    registers: dict[str, Arr] = field(default_factory=dict)  # each [B, H]

    @property
    def held(self) -> Arr:
        """Rows of each head, int64 [B, H]."""
        return np.array([[len(rows) for rows in heads] for heads in self.heads], np.int64)

    def add(self, rows: Heads) -> None:
        """These rows too."""
        for heads, new in zip(self.heads, rows, strict=True):
            heads[:] = [sorted(a + b, key=lambda row: row.position) for a, b in zip(heads, new, strict=True)]

    def chosen(self, index: Sequence[int]) -> Table:
        """These batch rows; each gets rows of its own."""
        heads = [
            [[Row(r.position, r.key, r.value, dict(r.columns), r.merged) for r in rows] for rows in self.heads[b]]
            for b in index
        ]
        registers = {name: data[list(index)] for name, data in self.registers.items()}
        return Table(heads, self.widths, dict(self.kinds), registers)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table laid out in slots, as numpy arrays [B, H, S, ...].

    Attributes:
        rows: which row lies in each slot.
        rank: int64, how many rows of the head are older; 0 where there is no row.
        merged: bool, `Row.merged`.
    """

    rows: Slots
    keys: Arr
    values: Arr
    positions: Arr
    valid: Arr
    rank: Arr
    merged: Arr
    columns: Mapping[str, Column]
    registers: Mapping[str, Arr]

    def view(self, array: Callable[..., Array], dtype: str, layer: int, num_layers: int) -> CacheView:
        """What a stage is given; ``array(data, dtype)`` makes a backend's array."""
        return CacheView(
            keys=array(self.keys, dtype),
            values=array(self.values, dtype),
            positions=array(self.positions),
            valid=array(self.valid),
            columns={n: Column(array(c.data), c.on_merge) for n, c in self.columns.items()},
            registers={name: array(data) for name, data in self.registers.items()} or EMPTY,
            layer=layer,
            num_layers=num_layers,
        )


def laid_out(table: Table, start: int = 0, fresh: int = 0, order: np.random.Generator | None = None) -> Sheet:
    """The rows in order of arrival, each head filled up to the longest with empty slots.

    Args:
        table: the rows.
        start: position of the first token of this pass.
        fresh: how many tokens this pass has. They end the table, a slot for each, padding too: stages rely on that.
        order: puts the rows before them, and a single token, into slots at random.
    """
    old = [[[row for row in rows if not fresh or row.position < start] for rows in heads] for heads in table.heads]
    longest = max(0 if fresh else 1, *(len(rows) for heads in old for rows in heads))
    slots: Slots = []
    for heads, whole in zip(old, table.heads, strict=True):
        slots.append([])
        for rows, all_rows in zip(heads, whole, strict=True):
            new = {row.position: row for row in all_rows[len(rows) :]}
            line: list[Row | None] = [
                *rows,
                *[None] * (longest - len(rows)),
                *map(new.get, range(start, start + fresh)),
            ]
            if order is not None:
                anywhere = longest + 1 if fresh == 1 else longest
                line[:anywhere] = [line[n] for n in order.permutation(anywhere)]
            slots[-1].append(line)
    shape = (len(slots), len(slots[0]), longest + fresh)
    sheet = Sheet(
        rows=slots,
        keys=np.zeros((*shape, table.widths[0])),
        values=np.zeros((*shape, table.widths[1])),
        positions=np.full(shape, -1, np.int64),
        valid=np.zeros(shape, bool),
        rank=np.zeros(shape, np.int64),
        merged=np.zeros(shape, bool),
        columns={name: Column(np.zeros(shape, dtype), rule) for name, (dtype, rule) in table.kinds.items()},
        registers=table.registers,
    )
    sheet.positions[..., longest:] = np.arange(start, start + fresh)
    for b, h in np.ndindex(*shape[:2]):
        rank = {id(row): n for n, row in enumerate(table.heads[b][h])}
        for s, row in enumerate(slots[b][h]):
            if row is not None:
                at = b, h, s
                sheet.keys[at], sheet.values[at], sheet.positions[at] = row.key, row.value, row.position
                sheet.valid[at], sheet.merged[at], sheet.rank[at] = True, row.merged, rank[id(row)]
                for name, number in row.columns.items():
                    sheet.columns[name].data[at] = number
    return sheet


def carry_out(slots: Slots, plan: Plan, table: Table, ops: Backend, dtype: str) -> tuple[Heads, Heads, Arr]:
    """What a plan makes of the rows in these slots.

    Returns:
        The rows that stay, those that are gone, and how many folded, int64 [B].
    """
    names = ("keep", "into", "weight", "self_weight", "key_scale", "value_scale")
    told = {name: ops.host(data).tolist() for name in names if (data := getattr(plan, name)) is not None}
    stay: Heads = []
    gone: Heads = []
    folded = np.zeros(len(slots), np.int64)
    for b, heads in enumerate(slots):
        stay.append([])
        gone.append([])
        for h, line in enumerate(heads):
            mine = {name: data[b][h] for name, data in told.items()}
            into = mine.get("into", [[] for _ in line])
            folds = [any(to >= 0 for to in targets) for targets in into]
            kept = [_kept(n, line, into, mine, table, plan, dtype) for n, stays in enumerate(mine["keep"]) if stays]
            left = [(row, folds[n]) for n, row in enumerate(line) if row is not None and not mine["keep"][n]]
            stay[-1].append(sorted(kept, key=lambda row: row.position))
            gone[-1].append([row for row, goes_on in left if not goes_on])
            folded[b] += sum(goes_on for _, goes_on in left)
    return stay, gone, folded


def _kept(
    n: int,
    line: Sequence[Row | None],
    into: Sequence[Sequence[int]],
    mine: Mapping[str, Any],
    table: Table,
    plan: Plan,
    dtype: str,
) -> Row:
    """``scale[n] * (self_weight[n] * row[n] + sum of weight[s, m] * row[s])`` over all (s, m) with ``into[s, m] == n``.

    A column that sums gets from each of these s the even share of its targets.
    """
    row = line[n]
    assert row is not None, "padding is kept"
    own = mine["self_weight"][n] if "self_weight" in mine else 1.0
    key_scale, value_scale = (mine[name][n] if name in mine else 1.0 for name in ("key_scale", "value_scale"))
    key, value, columns, alone = own * row.key, own * row.value, dict(row.columns), True
    for s, targets in enumerate(into):
        for m, to in enumerate(targets):
            other = line[s]
            if to == n and other is not None:
                alone = False
                key, value = key + mine["weight"][s][m] * other.key, value + mine["weight"][s][m] * other.value
                for name, (_, rule) in table.kinds.items():
                    if rule == "sum":
                        share = other.columns.get(name, 0.0) / sum(target >= 0 for target in targets)
                        columns[name] = columns.get(name, 0.0) + share
    return Row(
        position=row.position,
        key=rounded(key_scale * key, dtype) if plan.merge_keys else row.key,
        value=rounded(value_scale * value, dtype),
        columns={name: float(np.dtype(table.kinds[name][0]).type(number)) for name, number in columns.items()},
        merged=row.merged or not (alone and own == key_scale == value_scale == 1),
    )


def attend(view: CacheView, queries: Arr, places: Arr, scale: float, ops: Backend, *, count_bias: bool) -> Arr:
    """What attention gives, float64 [B, Hq, Q, Dv]: each query sees the rows up to its position.

    Args:
        view: the table.
        queries: [B, Hq, Q, D].
        places: int64 [B, Q], their positions.
        scale: softmax scale.
        ops: the backend of the view.
        count_bias: add ``log(count)`` to each logit.
    """
    groups = queries.shape[1] // view.shape[1]
    keys, values = (np.asarray(ops.host(data), np.float64) for data in (view.keys, view.values))
    there, valid = ops.host(view.positions)[:, :, None], ops.host(view.valid)[:, :, None]
    sees = np.repeat(valid & (there <= places[:, None, :, None]), groups, axis=1)
    logits = scale * (queries @ np.repeat(keys, groups, axis=1).swapaxes(-1, -2))
    if count_bias:
        count = np.where(valid, np.asarray(ops.host(view.columns["count"].data), np.float64)[:, :, None], 1.0)
        logits = logits + np.repeat(np.log(count), groups, axis=1)
    logits = np.where(sees, logits, -np.inf)
    top = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    shares = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    total = shares.sum(axis=-1, keepdims=True)
    out: Arr = (shares / np.where(total > 0, total, 1.0)) @ np.repeat(values, groups, axis=1)
    return out
