"""The data that flows through a policy: the table, what a forward pass did, and the Plan.

A KV cache is a table. Rows are cache entries; keys and values are vector columns; everything else that is known of a
row (arrival position, merge count, accumulated attention, segment) is a scalar column. All of it is read-only here:
only a `Store` changes rows, by carrying out a `Plan`.

Shapes: B batch rows, H key/value heads of this process (grouped query heads are never expanded), Hq query heads,
S table rows, D key dim, Dv value dim, Q queries of one forward pass, M targets per merged row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ._errors import MissingColumnError, PlanError, UnsupportedModelError
from ._heads import UNDIVIDED, Heads
from ._namespace import along, namespace

if TYPE_CHECKING:
    from ._protocols import Backend

__all__ = [
    "AUDIO",
    "EMPTY",
    "IMAGE",
    "TEXT",
    "VIDEO",
    "Array",
    "Assignment",
    "CacheView",
    "Column",
    "Counts",
    "HeadCounts",
    "KeepMask",
    "Phase",
    "Plan",
    "Queries",
    "Quota",
    "Rotate",
    "Rows",
    "Scored",
    "Scores",
    "Selection",
    "Step",
    "Weights",
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
            MissingColumnError: if the table does not carry it; names the stage and the columns there are.
        """
        if name not in self.columns:
            raise MissingColumnError(needed_by, name, tuple(self.columns), hint)
        return self.columns[name].data

    def with_columns(self, columns: Mapping[str, Column]) -> CacheView:
        """The same table with these columns added or replaced."""
        return replace(self, columns={**self.columns, **columns})

    def only(self, rows: KeepMask) -> CacheView:
        """The same table with none but these of its valid rows, bool [B, H, S]."""
        return replace(self, valid=rows, rank=None, alike=False)


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries of earlier passes that a scorer asked to keep.

    Attributes:
        vectors: [B, Hq, Q, D] after the rotary embedding.
        positions: int64 [B, Q], arrival index of each.
        valid: bool [B, Q]; False for padding.
        reach: int64 [B, Q], see `Step.query_reach`.
    """

    vectors: Array
    positions: Array
    valid: Array
    reach: Array | None = None

    @property
    def sees(self) -> Array:
        """int64 [B, Q]: the last arrival index that each query sees."""
        return self.positions if self.reach is None else self.reach

    def followed_by(self, later: Queries) -> Queries:
        """Both, in order."""
        xp = namespace(self.positions)
        return Queries(
            xp.concat([self.vectors, later.vectors], axis=2),
            xp.concat([self.positions, later.positions], axis=1),
            xp.concat([self.valid, later.valid], axis=1),
            None if self.reach is later.reach is None else xp.concat([self.sees, later.sees], axis=1),
        )

    def latest(self, count: int) -> Queries:
        """The last ``count`` valid ones of each batch row, in order; fewer if there are no more."""
        if self.positions.shape[1] <= count:
            return self
        xp = namespace(self.positions)
        order = xp.argsort(xp.where(self.valid, self.positions, xp.full_like(self.positions, -1)), axis=-1, stable=True)
        last = order[:, order.shape[1] - count :]
        return Queries(
            along(self.vectors, last[:, None, :, None], axis=2),
            along(self.positions, last, axis=1),
            along(self.valid, last, axis=1),
            None if self.reach is None else along(self.reach, last, axis=1),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What this forward pass did. Lengths are logical (tokens), never physical (rows).

    Attributes:
        phase: which pipeline is running.
        seen: int64 [B] (numpy), tokens seen so far by each batch row, padding not counted, this pass included.
        prompt: int64 [B] (numpy), tokens of ``seen`` that arrived in prefill passes.
        prompt_kept: int64 [B, parts * H] (numpy), rows that each head kept when the latest prompt was complete; zero
            before it. This and the other counts by head are of all heads of the layer, see ``heads``.
        queries: [B, Hq, Q, D] after the rotary embedding, this pass only.
        query_positions: int64 [B, Q], arrival index of each query.
        query_valid: bool [B, Q]; False for padding.
        scale: the softmax scale that the model itself used.
        ops: the backend of these arrays.
        row_bytes: bytes that one row per layer and head costs over the whole request (all layers, heads, batch rows, on
            all processes).
        count_bias: whether the model attends with ``+ log(count)`` on every logit (`Policy.count_bias`).
        held: int64 [B, parts * H] (numpy) for every layer: valid rows of each head. A layer that has not run in this
            pass yet stands as it was before it.
        prompt_quota: int64 [B, parts * H] (numpy) for every layer: the quotas of the latest prefill plan; zero without
            one.
        earlier: the queries before this pass, as many as a `Windowed` scorer asked for.
        rotate: turns rotary vectors by a number of positions; None where the caller gave no rotary embedding. An
            adapter gives it where positions are re-indexed or a stage says ``needs_rotate = True``.
        module: the attention module that ran, where an adapter gave it.
        length: tokens that have passed, padding included.
        whole_pass: whether the queries are exactly those of this pass, whose rows then end the table in order.
        query_reach: int64 [B, Q], the last arrival index that each query sees, where that may be later than its own
            (tokens of an image that see each other); None: its own.
        softcap: the model attends with ``softcap * tanh(logit / softcap)``, before any ``log(count)``; None: uncapped.
        sinks: floating [Hq], for each query head a logit that takes part in every softmax and belongs to no row; None:
            every softmax is over rows alone.
        archived: int64 [B, parts * H] (numpy) for every layer: rows of each head that are in the archive.
        heads: the heads of a layer, of which this process may hold a share. A stage that combines heads combines
            ``heads.all(data)``, and takes its own part of host counts with ``heads.own(counts)``.
        surplus: the most rows that any head of the layer has to give up in this plan (held - quota, at least 0), where
            the host knows it. A selector that asks another one for a smaller quota takes it away: ``surplus=None``.
        shares: floating [B, H, S], where the attention of this pass, of one query a batch row, has told what share each
            row received: the mean over the query heads that share a key/value head.
        log_sums: floating [B, Hq, Q], where the attention of this pass has told them: the natural logarithm of what the
            softmax of each query divides by. Of queries that see nothing it may be anything.
    """

    phase: Phase
    seen: Counts
    prompt: Counts
    prompt_kept: HeadCounts
    queries: Array
    query_positions: Array
    query_valid: Array
    scale: float
    ops: Backend
    row_bytes: int = 0
    count_bias: bool = False
    held: tuple[HeadCounts, ...] = ()
    prompt_quota: tuple[HeadCounts, ...] = ()
    earlier: Queries | None = None
    rotate: Rotate | None = None
    module: object = None
    length: int = 0
    whole_pass: bool = True
    query_reach: Array | None = None
    softcap: float | None = None
    sinks: Array | None = None
    archived: tuple[HeadCounts, ...] = ()
    heads: Heads = field(default_factory=lambda: UNDIVIDED)  # torch 2.11 cannot compile what has an object as default
    surplus: int | None = None
    shares: Array | None = None
    log_sums: Array | None = None

    @property
    def padding(self) -> Counts:
        """int64 [B] (numpy): padding that has passed. On the left, ``position - padding`` counts a row's own tokens."""
        return self.length - self.seen

    @property
    def asked(self) -> Queries:
        """The queries of this step, with all that is known of each."""
        return Queries(self.queries, self.query_positions, self.query_valid, self.query_reach)

    def require_uncapped(self, needed_by: str) -> None:
        """For a stage that reasons with logits as the products of queries and keys.

        Raises:
            UnsupportedModelError: if the model caps its logits; names the stage and the cap.
        """
        if self.softcap is not None:
            raise UnsupportedModelError(
                f"{needed_by} takes logits for products of queries and keys, and this model caps them "
                f"(softcap={self.softcap}). Hint: a stage that goes by attention or by keys, such as AttentionMass."
            )

    def latest(self, count: int) -> Step:
        """The same step with the last ``count`` valid queries of each batch row, those of earlier passes included."""
        if self.earlier is None and self.query_positions.shape[1] <= count:
            return replace(self, whole_pass=False)
        asked = self.asked
        if self.earlier is not None:
            asked = self.earlier.followed_by(asked)
        asked = asked.latest(count)
        return replace(
            self,
            queries=asked.vectors,
            query_positions=asked.positions,
            query_valid=asked.valid,
            query_reach=asked.reach,
            earlier=None,
            whole_pass=False,
            shares=None,
            log_sums=None,
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """What an allocator and a selector go by.

    Attributes:
        view: the table of a layer.
        scores: floating [B, H, S]; higher = keep.
    """

    view: CacheView
    scores: Scores


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows stay.

    Attributes:
        keep: bool [B, H, S].
        groups: int64 [B, H, S] cluster ids, for mergers that need them.
        registers: per-head state to carry on, each [B, H].
    """

    keep: KeepMask
    groups: Array | None = None
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where the rows that are not kept go.

    Attributes:
        into: int64 [B, H, S, M], the kept row that a dropped row folds into; -1 where it does not.
        similarity: floating [B, H, S, M], how alike the two are, where the assigner went by that.
        registers: per-head state to carry on, each [B, H].
    """

    into: Array
    similarity: Array | None = None
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Weights:
    """With what weight rows fold; all fields but the last are those of a `Plan`.

    Attributes:
        weight: floating [B, H, S, M].
        own: floating [B, H, S].
        key_scale: floating [B, H, S]; None: 1.
        value_scale: floating [B, H, S]; None: 1.
        folds: bool [B, H, S, M], what folds at all: the rest is dropped, and with it what it counts. None: everything
            that is assigned.
    """

    weight: Array
    own: Array
    key_scale: Array | None = None
    value_scale: Array | None = None
    folds: Array | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen to a table; pure data, in the coordinates of the table it was made for.

    A kept row ``n`` becomes ``scale[n] * (self_weight[n] * row[n] + sum of weight[s, m] * row[s])`` over all (s, m)
    with ``into[s, m] == n``, where scale is key_scale for keys and value_scale for values. Rows that are neither kept
    nor folded into a kept row are dropped.

    Attributes:
        keep: bool [B, H, S].
        into: int64 [B, H, S, M], the kept row that a dropped row folds into; -1 where it does not. None: pure eviction.
        weight: float32 [B, H, S, M].
        self_weight: float32 [B, H, S].
        merge_keys: False for mergers that touch values only.
        key_scale: floating [B, H, S]; None: 1.
        value_scale: floating [B, H, S]; None: 1.
        registers: per-head state to carry on, each [B, H].
    """

    keep: KeepMask
    into: Array | None = None
    weight: Array | None = None
    self_weight: Array | None = None
    merge_keys: bool = True
    key_scale: Array | None = None
    value_scale: Array | None = None
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)

    def __post_init__(self) -> None:
        if self.into is not None and (self.weight is None or self.self_weight is None):
            raise PlanError("Plan(into=...) needs weight= and self_weight= too: a fold without weights means nothing.")
        if self.into is None and not (self.key_scale is None and self.value_scale is None):
            raise PlanError("Plan(key_scale=..., value_scale=...) needs into= too: only merged rows are scaled.")
