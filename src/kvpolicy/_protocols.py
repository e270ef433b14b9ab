"""The seams of a policy. A user's stage is a plain class with the protocol's method; inheriting is optional.

`ImportanceScorer`, `Merger` and `Scheduler` are what one meets first; the others have defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ._types import Array, CacheView, Column, Counts, KeepMask, Plan, Quota, Rows, Scored, Scores, Selection, Step

__all__ = [
    "Allocator",
    "Assigner",
    "Backend",
    "Bounded",
    "ImportanceScorer",
    "Merger",
    "Observer",
    "Scheduler",
    "Selector",
    "Store",
    "Weigher",
]


@runtime_checkable
class ImportanceScorer(Protocol):
    """How much each row is worth keeping."""

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """Scores [B, H, S], any floating dtype, higher = keep; never NaN. Invalid rows are ignored."""
        ...


@runtime_checkable
class Observer(Protocol):
    """Second face of a scorer: columns that it accumulates at every forward pass, whether or not a plan is made."""

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        """The columns to add or replace. Observing a prompt in chunks must equal observing it whole."""
        ...


@runtime_checkable
class Scheduler(Protocol):
    """When to act, and how many rows may stay."""

    def budget(self, step: Step, /) -> int | Counts | None:
        """Rows per (layer, head) on average, one number or one per batch row [B]; None leaves the table alone."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """Second face of a scheduler whose budget never grows: lets the store allocate once."""

    def limit(self, step: Step, /) -> int:
        """The largest budget that this request will ever be given."""
        ...


@runtime_checkable
class Allocator(Protocol):
    """Splits the budget over layers and heads, in integers, with the exact total."""

    @property
    def whole_model(self) -> bool:
        """True: wait until every layer has been scored, then call `allocate` once with all of them."""
        ...

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step, /) -> Sequence[Quota]:
        """One quota, int64 [B, H], per given layer. ``budget`` is int64 [B]."""
        ...


@runtime_checkable
class Selector(Protocol):
    """Which rows fill the quota."""

    def select(self, scored: Scored, quota: Quota, step: Step, /) -> Selection:
        """Protected rows stay even where they exceed the quota; padding never stays."""
        ...


@runtime_checkable
class Merger(Protocol):
    """What becomes of the rows that were not kept."""

    def merge(self, scored: Scored, selection: Selection, step: Step, /) -> Plan:
        """The Plan; it keeps exactly ``selection.keep``."""
        ...


@runtime_checkable
class Assigner(Protocol):
    """Where each dropped row goes: the index half of `mergers.Fold`."""

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Array:
        """int64 [B, H, S, M]: the kept row that a dropped row folds into; -1 where it does not."""
        ...


@runtime_checkable
class Weigher(Protocol):
    """With what weight: the other half of `mergers.Fold`."""

    def weigh(self, scored: Scored, selection: Selection, into: Array, step: Step, /) -> tuple[Array, Array]:
        """``weight`` float32 [B, H, S, M] and ``self_weight`` float32 [B, H, S]."""
        ...


class Store(Protocol):
    """Where the rows of one layer live: the only thing that makes or changes keys and values."""

    @property
    def capacity(self) -> int:
        """Physical rows per head."""
        ...

    def nbytes(self) -> tuple[int, int]:
        """Bytes of storage held: keys and values, and scalar columns."""
        ...

    def append(self, rows: Rows, /, *, limit: int | None = None) -> CacheView:
        """Add rows and return the table. ``limit``: do not grow ahead beyond so many slots."""
        ...

    def view(self) -> CacheView:
        """The table as it is."""
        ...

    def observe(self, columns: Mapping[str, Column], /) -> None:
        """Add or replace scalar columns."""
        ...

    def apply(self, plan: Plan, rows: int, /) -> None:
        """Carry out a plan that keeps at most ``rows`` rows per head."""
        ...

    def select_batch(self, index: Array, /) -> None:
        """Keep these batch rows, in this order, repeats allowed (beam search)."""
        ...

    def clear(self) -> None:
        """Forget everything and release the storage."""
        ...


class Backend(Protocol):
    """The few heavy operations behind the stages; not an array library. Chosen by the arrays' own type."""

    @property
    def name(self) -> str:
        """``numpy``, ``torch``, ``triton``."""
        ...

    def store(self, layer: int, num_layers: int, /) -> Store:
        """An empty store."""
        ...

    def host(self, data: Array, /) -> np.ndarray[Any, Any]:
        """The data as a numpy array (waits for the device)."""
        ...

    def attention_mass(
        self, view: CacheView, step: Step, /, *, window: int | None = None, group: Literal["mean", "max"] = "mean"
    ) -> Scores:
        """Column sums of the causal attention of this pass's valid queries: float32 (or wider) [B, H, S].

        ``window`` counts only the last so many queries of each batch row. ``group`` reduces the query heads that share
        a key/value head.
        """
        ...

    def top_k(self, scores: Scores, quota: Quota, view: CacheView, /) -> KeepMask:
        """The ``quota`` best valid rows of each head; ties go to the later arrival."""
        ...

    def arrival_rank(self, view: CacheView, /) -> Array:
        """int64 [B, H, S]: 0 for the oldest valid row of each head; S for invalid rows."""
        ...

    def nearest_position(self, view: CacheView, keep: KeepMask, /) -> Array:
        """int64 [B, H, S]: for every row, the kept row nearest by arrival; ties go to the earlier one; -1 if none."""
        ...

    def segment_sum(self, data: Array, index: Array, /) -> Array:
        """``out[b, h, n] = sum of data[b, h, s, m] over index[b, h, s, m] == n``, [B, H, S]; index -1 is left out."""
        ...

    def compact(self, view: CacheView, plan: Plan, rows: int, /) -> CacheView:
        """The table that the plan describes, in ``rows`` rows, in the order of arrival."""
        ...
