"""A KV cache is a table, and these are its rows and columns.

Rows are cache entries; keys and values are vector columns; everything else that is known of a row (arrival position,
merge count, accumulated attention, segment) is a scalar column. All of it is read-only here: only a `Store` changes
rows, by carrying out a `Plan`.

Shapes: B batch rows, H key/value heads of this process (grouped query heads are never expanded), Hq query heads,
S table rows, D key dim, Dv value dim, Q queries of one forward pass, M targets per merged row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from ._columns import how_to_bring
from ._errors import MissingColumnError
from ._namespace import namespace

__all__ = [
    "AUDIO",
    "EMPTY",
    "IMAGE",
    "TEXT",
    "VIDEO",
    "Array",
    "CacheView",
    "Column",
    "Counts",
    "HeadCounts",
    "KeepMask",
    "Quota",
    "Rotate",
    "Rows",
    "Scores",
]

Array: TypeAlias = Any  # an array of the backend in use (numpy.ndarray, torch.Tensor)
Scores: TypeAlias = Any  # floating [B, H, S]; higher = keep
KeepMask: TypeAlias = Any  # bool [B, H, S]
Quota: TypeAlias = Any  # int64 [B, parts * H]; a numpy array where the host knows it, else the backend's
Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # int64 [B], always numpy: host knowledge costs no device sync
HeadCounts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # int64 [B, parts * H], numpy likewise: of all heads
Rotate: TypeAlias = Callable[[Array, Array], Array]  # vectors [B, H, N, D] turned by int64 [B, H, N] positions

TEXT, IMAGE, VIDEO, AUDIO = 0, 1, 2, 3  # the column ``segment``; stages ask whether a row is text or not

EMPTY: Mapping[str, Any] = {}  # read-only by type; a mappingproxy could be neither copied nor pickled


@dataclass(frozen=True, slots=True)
class Column:
    """One scalar per row, compacted with its row by the engine.

    Attributes:
        data: [B, H, S].
        on_merge: what a surviving row does with the values of the rows folded into it.
    """

    data: Array
    on_merge: Literal["keep", "sum"] = "keep"


@dataclass(frozen=True, slots=True)
class Rows:
    """New rows to append to a table.

    Attributes:
        keys: [B, H, Q, D], after the rotary embedding.
        values: [B, H, Q, Dv].
        positions: int64 [B, Q], arrival index.
        valid: bool [B, Q]; False for padding.
        columns: further scalar columns [B, Q] known on arrival (``segment``).
    """

    keys: Array
    values: Array
    positions: Array
    valid: Array
    columns: Mapping[str, Array] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True)
class CacheView:
    """The table of one layer of one request batch, read-only.

    Rows carry no order: ``positions`` says where a row came from, and a stage that needs neighbours goes by it.

    Attributes:
        keys: [B, H, S, D], after the rotary embedding.
        values: [B, H, S, Dv].
        positions: int64 [B, H, S], arrival index (not a rotary position); -1 in an empty slot.
        valid: bool [B, H, S]; False for padding and empty slots.
        columns: ``count`` (tokens a row stands for, float32) always; others on demand.
        registers: per-head state, floating [B, H]; NaN where it was never set.
        layer: index of this layer among the layers under the policy.
        num_layers: how many layers are under the policy.
        rank: int64 [B, H, S], arrival ranks as `Backend.arrival_rank` gives them, where whoever made the view knows
            them.
        alike: known without a look at the data: all heads of the layer, on all processes, hold the same tokens in the
            same slots.

    ``rank`` and ``alike`` speak of ``positions`` and ``valid``. Whoever gives a view other ones says ``rank=None,
    alike=False`` beside them, as `only` does.
    """

    keys: Array
    values: Array
    positions: Array
    valid: Array
    columns: Mapping[str, Column]
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)
    layer: int = 0
    num_layers: int = 1
    rank: Array | None = None
    alike: bool = False

    @property
    def xp(self) -> Any:
        """The array namespace (Array API standard) of this view's own arrays."""
        return namespace(self.positions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, S)."""
        batch, heads, rows = self.positions.shape
        return int(batch), int(heads), int(rows)

    @property
    def known_rank(self) -> Array | None:
        """``rank``, or what a backend has counted for this very view and noted beside its fields; None: not yet."""
        return vars(self).get("_counted") if self.rank is None else self.rank

    def column(self, name: str, *, needed_by: str, hint: str = "") -> Array:
        """The data of a column, [B, H, S].

        Raises:
            MissingColumnError: if the table does not carry it; names the stage, the columns there are, and ``hint``, or
                else where such a column comes from.
        """
        if name not in self.columns:
            raise MissingColumnError(needed_by, name, tuple(self.columns), hint or how_to_bring(name))
        return self.columns[name].data

    def with_columns(self, columns: Mapping[str, Column]) -> CacheView:
        """The same table with these columns added or replaced."""
        return replace(self, columns={**self.columns, **columns})

    def only(self, rows: KeepMask) -> CacheView:
        """The same table with none but these of its valid rows, bool [B, H, S]."""
        return replace(self, valid=rows, rank=None, alike=False)
