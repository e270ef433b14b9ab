"""The seams of a policy. A user's stage is a plain class with the protocol's method; inheriting is optional.

`ImportanceScorer`, `Merger` and `Scheduler` are what one meets first; the others have defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ._plan import Assignment, Plan, Scored, Selection, Weights
from ._step import Step
from ._types import Array, CacheView, Column, Counts, HeadCounts, KeepMask, Quota, Rows, Scores

__all__ = [
    "Ahead",
    "Allocator",
    "Assigner",
    "Attending",
    "Backend",
    "Bounded",
    "CrossLayer",
    "ImportanceScorer",
    "Merger",
    "Observer",
    "Recaller",
    "Scheduler",
    "Selector",
    "Store",
    "Weigher",
    "Windowed",
]


@runtime_checkable
class ImportanceScorer(Protocol):
    """How much each row is worth keeping.

    One that gives all heads which hold the same tokens the same scores may say so, ``alike_heads = True``: heads that
    are known to be alike are cheaper (`CacheView.alike`).
    """

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
class Windowed(Protocol):
    """Second face of a scorer that looks at the latest queries, also where a prompt came in chunks."""

    @property
    def window(self) -> int:
        """How many of the latest queries must be there for `Step.latest`."""
        ...


@runtime_checkable
class CrossLayer(Protocol):
    """Second face of a scorer whose scores depend on other layers: every layer is scored before any is planned."""

    def across(self, layers: Sequence[Scored], step: Step, /) -> Sequence[Scores]:
        """The final scores of each layer, [B, H, S]."""
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
        """One quota, int64 [B, parts * H], per given layer: of all its heads, on whichever process (`Step.heads`).

        ``budget`` is int64 [B], rows per layer and head on average.
        """
        ...


@runtime_checkable
class Ahead(Protocol):
    """Second face of an allocator that needs no scores: each layer is planned as soon as it has attended.

    Only such an allocator may give one layer more than another without being `Allocator.whole_model`.
    """

    def ahead(self, budget: Counts, layer: int, num_layers: int, heads: int, step: Step, /) -> HeadCounts:
        """The quota of one layer, int64 [B, heads] (numpy), of all its heads; over all layers the total is exact."""
        ...


@runtime_checkable
class Recaller(Protocol):
    """Brings rows back that were released: rows that leave under its pipeline go to an archive in host memory."""

    def recall(self, archive: CacheView, step: Step, /) -> KeepMask:
        """Rows of the archive that return to the table, bool [B, H, A].

        The archive's keys and values are brought to the device for this, unless the recaller says with
        ``reads_vectors = False`` that it goes by columns: then they stay on the host, and nothing is moved but what
        returns.
        """
        ...


@runtime_checkable
class Selector(Protocol):
    """Which rows fill the quota.

    One that keeps the same rows in all heads which hold the same tokens, with the same scores and the same quota, may
    say so, ``alike_heads = True``, as a scorer may.
    """

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

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
        """For every dropped row the kept rows that it folds into."""
        ...


@runtime_checkable
class Weigher(Protocol):
    """With what weight: the other half of `mergers.Fold`."""

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """Weights for every target of the assignment, and for the kept rows themselves."""
        ...


class Store(Protocol):
    """Where the rows of one layer live: the only thing that makes or changes keys and values."""

    @property
    def capacity(self) -> float:
        """Physical rows of keys and values per head, on average."""
        ...

    @property
    def slots(self) -> int:
        """S of the view, which may cost more than its length to make."""
        ...

    def nbytes(self) -> tuple[int, int]:
        """Bytes of storage held: keys and values, and scalar columns."""
        ...

    def append(self, rows: Rows, /, *, limit: int | None = None) -> CacheView:
        """Add rows and return the table. ``limit``: do not grow ahead beyond so many slots."""
        ...

    def view(self, *, near: bool = False) -> CacheView:
        """The table as it is. ``near``: keys and values that live on the host are brought beside the scalars."""
        ...

    def observe(self, columns: Mapping[str, Column], /) -> None:
        """Add or replace scalar columns."""
        ...

    def apply(self, plan: Plan, kept: HeadCounts, /) -> None:
        """Carry out a plan that keeps ``kept`` rows of each head, int64 [B, H] (numpy)."""
        ...

    def join(self, rows: CacheView, count: HeadCounts, /) -> None:
        """Add the rows of another table with all they carry, ``count`` valid ones a head (numpy int64 [B, H])."""
        ...

    def select_batch(self, index: Array, /) -> None:
        """Keep these batch rows, in this order, repeats allowed (beam search)."""
        ...

    def clear(self) -> None:
        """Forget everything and release the storage."""
        ...


class Backend(Protocol):
    """The few heavy operations behind the stages; not an array library. Chosen by the arrays' own type, or by name."""

    @property
    def name(self) -> str:
        """``numpy``, ``torch``, ``triton``."""
        ...

    def store(self, layer: int, num_layers: int, /, *, on_host: bool = False) -> Store:
        """An empty store; with ``on_host`` its keys and values live in host memory, whatever the device."""
        ...

    def host(self, data: Array, /) -> np.ndarray[Any, Any]:
        """The data as a numpy array (waits for the device); a dtype that numpy lacks becomes the next wider one."""
        ...

    def from_host(self, data: np.ndarray[Any, Any], /, *, dtype: str | None = None, device: Any = None) -> Array:
        """A copy of the data as this backend's array, in its own dtype or in that of this name (``"float16"``)."""
        ...

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
        """Column sums of the causal attention of the step's valid queries: float32 (or wider) [B, H, S].

        ``weights``, floating [B, Q], counts each query so often. ``group`` reduces the query heads that share a
        key/value head. With ``above`` the sum is not of the attention but of how often it reaches that share of the
        largest that its query pays.
        """
        ...

    def most_similar(self, view: CacheView, rows: KeepMask, anchors: KeepMask, /) -> tuple[Array, Array]:
        """For each marked row the anchor whose key has the highest cosine similarity, and that similarity.

        int64 and floating [B, H, S]; ties go to the earliest arrival; -1 and 0 where a row is not marked or there is
        no anchor. A key of length zero is similar to nothing (0).
        """
        ...

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
        """The ``quota`` best valid rows of each head; ties go to the later arrival.

        A quota below 0 is none. ``surplus`` promises that no head has more valid rows above its quota than that. The
        ``first`` and the ``last`` valid rows by arrival (a number, or int64 [B, H]) stay whatever they score: they
        count inside the quota, and where they alone exceed it, they stay, too.
        """
        ...

    def arrival_rank(self, view: CacheView, /) -> Array:
        """int64 [B, H, S]: 0 for the oldest valid row of each head; S for invalid rows. `CacheView.rank` if set."""
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


@runtime_checkable
class Attending(Protocol):
    """Second face of a backend that attends by itself while decoding, and tells what share each row received."""

    def attend(
        self,
        view: CacheView,
        queries: Array,
        /,
        *,
        scale: float,
        softcap: float | None,
        sinks: Array | None,
        count_bias: bool,
        want_shares: bool,
    ) -> tuple[Array, Array | None]:
        """The output [B, Hq, 1, Dv] of queries [B, Hq, 1, D] over all valid rows, and `Step.shares` if they are wanted.

        The other arguments are as in `Step`.
        """
        ...
