"""The verbs of the numpy backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np

from ..._errors import BackendUnavailableError
from ..._plan import Plan
from ..._protocols import Backend
from ..._step import Step
from ..._types import Array, CacheView, KeepMask, Quota, Scores
from .attention import attention, sees
from .compaction import compacted
from .rows import by_arrival, valid_rows
from .store import NumpyStore

__all__ = ["NumpyBackend"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


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
                    paid = attention(view, step, b, h * per_head + g, i)
                    if above is not None:
                        most = above * paid.max()
                        paid = np.array([float(sees(view, step, b, h, i, n) and paid[n] >= most) for n in range(rows)])
                    sums[g] += paid if weights is None else float(weights[b, i]) * paid
            mass[b, h] = sums.max(axis=0) if group == "max" else sums.mean(axis=0)
        return mass

    def most_similar(self, view: CacheView, rows: KeepMask, anchors: KeepMask, /) -> tuple[Array, Array]:
        """The anchor of highest cosine similarity for each marked row, ties to the earliest; -1 and 0 elsewhere."""
        into = np.full(view.shape, -1, dtype=np.int64)
        similarity = np.zeros(view.shape)
        for b, h in np.ndindex(*view.shape[:2]):
            there = by_arrival(view, b, h, [n for n in valid_rows(view, b, h) if anchors[b, h, n]])
            for s in valid_rows(view, b, h):
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
            held = by_arrival(view, b, h, valid_rows(view, b, h))
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
            for place, n in enumerate(by_arrival(view, b, h, valid_rows(view, b, h))):
                rank[b, h, n] = place
        return rank

    def nearest_position(self, view: CacheView, keep: KeepMask, /) -> Array:
        """int64 [B, H, S]: the kept row nearest by arrival, ties to the earlier; -1 for invalid rows or if none."""
        nearest = np.full(view.shape, -1, dtype=np.int64)
        for b, h in np.ndindex(*view.shape[:2]):
            position = view.positions[b, h].tolist()
            kept = [n for n in valid_rows(view, b, h) if keep[b, h, n]]
            for s in valid_rows(view, b, h):
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
        return compacted(view, plan, rows)


def _cosine(one: _Array, other: _Array) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
    return float(one @ other) / lengths if lengths > 0 else 0.0
