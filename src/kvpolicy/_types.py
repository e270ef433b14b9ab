"""The data that flows through a policy: the table, what a forward pass did, and the Plan.

A KV cache is a table. Rows are cache entries; keys and values are vector columns; everything else that is known of a
row (arrival position, merge count, accumulated attention, segment) is a scalar column. All of it is read-only here:
only a `Store` changes rows, by carrying out a `Plan`.

Shapes: B batch rows, H key/value heads (grouped query heads are never expanded), Hq query heads, S table rows,
D key dim, Dv value dim, Q queries of one forward pass, M targets per merged row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import array_api_compat
import numpy as np

from ._errors import MissingColumnError, PlanError

if TYPE_CHECKING:
    from ._protocols import Backend

__all__ = [
    "EMPTY",
    "Array",
    "CacheView",
    "Column",
    "Counts",
    "KeepMask",
    "Phase",
    "Plan",
    "Quota",
    "Rows",
    "Scored",
    "Scores",
    "Selection",
    "Step",
]

Array: TypeAlias = Any  # an array of the backend in use (numpy.ndarray, torch.Tensor)
Scores: TypeAlias = Any  # floating [B, H, S]; higher = keep
KeepMask: TypeAlias = Any  # bool [B, H, S]
Quota: TypeAlias = Any  # int64 [B, H]; a numpy array where the host knows it, else the backend's
Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # int64 [B], always numpy: host knowledge costs no device sync

EMPTY: Mapping[str, Any] = {}  # read-only by type; a mappingproxy could be neither copied nor pickled


class Phase(Enum):
    """Which pipeline of a policy a forward pass belongs to."""

    PREFILL = "prefill"
    DECODE = "decode"


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
        registers: per-head state, each [B, H].
        layer: index of this layer among the layers under the policy.
        num_layers: how many layers are under the policy.
    """

    keys: Array
    values: Array
    positions: Array
    valid: Array
    columns: Mapping[str, Column]
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)
    layer: int = 0
    num_layers: int = 1

    @cached_property
    def xp(self) -> Any:
        """The array namespace (Array API standard) of this view's own arrays."""
        return array_api_compat.array_namespace(self.positions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, H, S)."""
        batch, heads, rows = self.positions.shape
        return int(batch), int(heads), int(rows)

    def column(self, name: str, *, needed_by: str, hint: str = "") -> Array:
        """The data of a column, [B, H, S].

        Raises:
            MissingColumnError: if the table does not carry it; names the stage and the columns there are.
        """
        if name not in self.columns:
            raise MissingColumnError(needed_by, name, tuple(self.columns), hint)
        return self.columns[name].data

    def with_columns(self, columns: Mapping[str, Column]) -> CacheView:
        """The same table with these columns added or replaced."""
        return replace(self, columns={**self.columns, **columns})


@dataclass(frozen=True, slots=True)
class Step:
    """What this forward pass did. Lengths are logical (tokens), never physical (rows).

    Attributes:
        phase: which pipeline is running.
        seen: int64 [B] (numpy), tokens seen so far by each batch row, padding not counted, this pass included.
        prompt: int64 [B] (numpy), tokens of ``seen`` that arrived in prefill passes.
        prompt_kept: int64 [B] (numpy), rows kept by the latest prefill plan (largest head); zero before it.
        queries: [B, Hq, Q, D] after the rotary embedding, this pass only.
        query_positions: int64 [B, Q], arrival index of each query.
        query_valid: bool [B, Q]; False for padding.
        scale: the softmax scale that the model itself used.
        ops: the backend of these arrays.
        row_bytes: bytes that one row per layer and head costs over the whole request (all layers, heads, batch rows).
        count_bias: whether the model attends with ``+ log(count)`` on every logit (`Policy.count_bias`).
    """

    phase: Phase
    seen: Counts
    prompt: Counts
    prompt_kept: Counts
    queries: Array
    query_positions: Array
    query_valid: Array
    scale: float
    ops: Backend
    row_bytes: int = 0
    count_bias: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """A table and the scores of its rows ([B, H, S], higher = keep)."""

    view: CacheView
    scores: Scores


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows stay.

    Attributes:
        keep: bool [B, H, S].
        groups: int64 [B, H, S] cluster ids, for mergers that need them.
    """

    keep: KeepMask
    groups: Array | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen to a table; pure data, in the coordinates of the table it was made for.

    A kept row ``n`` becomes ``self_weight[n] * row[n] + sum of weight[s, m] * row[s]`` over all (s, m) with
    ``into[s, m] == n``.
    Rows that are neither kept nor folded into a kept row are dropped.

    Attributes:
        keep: bool [B, H, S].
        into: int64 [B, H, S, M], the kept row that a dropped row folds into; -1 where it does not. None: pure eviction.
        weight: float32 [B, H, S, M].
        self_weight: float32 [B, H, S].
        merge_keys: False for mergers that touch values only.
        registers: per-head state to carry on, each [B, H].
    """

    keep: KeepMask
    into: Array | None = None
    weight: Array | None = None
    self_weight: Array | None = None
    merge_keys: bool = True
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)

    def __post_init__(self) -> None:
        if self.into is not None and (self.weight is None or self.self_weight is None):
            raise PlanError("Plan(into=...) needs weight= and self_weight= too: a fold without weights means nothing.")
