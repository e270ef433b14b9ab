"""One row for each run of similar neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from .._check import check_number, check_share
from .._namespace import along
from .._plan import Scored, Selection
from .._protocols import Selector
from .._repr import constructor_repr
from .._step import Step
from .._types import Array, CacheView, KeepMask, Quota

__all__ = ["Clusters"]

_CHUNK = 4096  # rows whose keys are gathered at once: bounds the temporary copy


@final
@dataclass(frozen=True, slots=True)
class Clusters(Selector):
    """Runs of neighbours with similar keys become clusters, of which the best-scored row stays: the pivot.

    Of a quota q the last ``floor(recent * q)`` rows stay by themselves, and of the others the best ``floor(top * q)``,
    as far as that leaves a row for each run between them. Any two of the remaining rows that arrived one after the
    other are linked if the cosine similarity of their keys is high enough; linked rows are one cluster. Ties go to
    the later row everywhere. A head that holds no more than its quota is left alone, one without a quota keeps nothing.

    Source: KVMerger (arXiv 2407.08454, section 4), which fixes epsilon (0.75) and takes the size that it gives.

    Args:
        epsilon: link neighbours whose similarity is above it, whatever size that gives. None: link just as many of the
            most similar ones as meet the quota exactly, which is a search for epsilon in each head.
        recent: share of the quota, in [0, 1], for the last rows; at least one row of the quota is left to the clusters.
        top: share of the quota, in [0, 1], for the best-scored rows.
    """

    gives_groups: ClassVar[bool] = True

    epsilon: float | None = None
    recent: float = 0.25
    top: float = 0.25

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_number("Clusters", "epsilon", self.epsilon)
        check_share("Clusters", "recent", self.recent, zero=True)
        check_share("Clusters", "top", self.top, zero=True)

    def select(self, scored: Scored, quota: Quota, step: Step, /) -> Selection:
        """The pivots; the group of a row is its cluster's pivot, -1 for invalid rows."""
        view, xp = scored.view, scored.view.xp
        quota = xp.asarray(quota, dtype=xp.int64, device=view.positions.device)
        rank = step.ops.arrival_rank(view)
        order = xp.argsort(rank, axis=-1, stable=True)
        end = xp.full_like(rank, view.shape[2] - 1)
        place = xp.minimum(rank, end)  # where a row stands in that order
        linked = self._links(scored, quota, rank, order, place, step)
        apart = xp.logical_not(along(linked, order, axis=-1))
        begins = xp.concat([xp.ones_like(apart[..., :1]), apart[..., :-1]], axis=-1)
        number = xp.cumulative_sum(xp.astype(begins, xp.int64), axis=-1) - 1
        cluster = xp.where(view.valid, along(number, place, axis=-1), end + 1)
        pivots = _best(scored.scores, cluster, order, view)
        groups = along(pivots, xp.minimum(cluster, end), axis=-1)
        stays = view.valid & (quota > 0)[..., None]
        groups = xp.where(stays, groups, xp.full_like(groups, -1))
        slots = xp.arange(view.shape[2], dtype=xp.int64, device=view.positions.device)
        return Selection(stays & (groups == slots), groups)

    def _links(self, scored: Scored, quota: Array, rank: Array, order: Array, place: Array, step: Step) -> KeepMask:
        """bool [B, H, S]: rows in one cluster with the row after them."""
        view, xp = scored.view, scored.view.xp
        held = xp.sum(xp.astype(view.valid, xp.int64), axis=-1)
        rest = view.valid & ~self._alone(scored, quota, rank, held, step)
        here = along(rest, order, axis=-1)
        joined = here & xp.concat([here[..., 1:], xp.zeros_like(here[..., :1])], axis=-1)
        joined = view.valid & along(joined, place, axis=-1)
        similarity = along(_to_next(view, order), place, axis=-1)
        if self.epsilon is None:
            return step.ops.top_k(similarity, held - quota, view.only(joined))
        return joined & (similarity > self.epsilon) & (held > quota)[..., None]

    def _alone(self, scored: Scored, quota: Array, rank: Array, held: Array, step: Step) -> KeepMask:
        """bool [B, H, S]: the last rows and the best of the others."""
        view, xp = scored.view, scored.view.xp
        none = xp.zeros_like(quota)
        last = xp.minimum(_share(self.recent, quota, xp), xp.maximum(quota - 1, none))
        # Each row that stays inside the others cuts a run in two, so it costs two rows of the quota.
        best = xp.minimum(_share(self.top, quota, xp), (quota - last - 1) // 2)
        late = view.valid & (rank >= (held - last)[..., None])
        return late | step.ops.top_k(scored.scores, xp.maximum(best, none), view.only(view.valid & ~late))


def _share(share: float, quota: Array, xp: Any) -> Array:
    return xp.astype(xp.floor(float(share) * xp.astype(quota, xp.float64)), xp.int64)


def _to_next(view: CacheView, order: Array) -> Array:
    """Cosine similarity of neighbouring keys in this order, [B, H, S]; 0 for the last and for keys of length zero."""
    xp, rows = view.xp, view.shape[2]
    dtype = xp.float64 if view.keys.dtype == xp.float64 else xp.float32
    pieces = []
    for start in range(0, rows, _CHUNK):
        keys = along(view.keys, order[..., start : start + _CHUNK + 1, None], axis=2)
        keys = xp.astype(keys, dtype)
        one, other = keys[:, :, :-1], keys[:, :, 1:]
        length = xp.sqrt(xp.sum(one**2, axis=-1)) * xp.sqrt(xp.sum(other**2, axis=-1))
        pieces.append(xp.sum(one * other, axis=-1) / xp.where(length > 0, length, xp.ones_like(length)))
    pieces.append(xp.zeros((*view.shape[:2], 1), dtype=dtype, device=view.positions.device))
    return xp.concat(pieces, axis=-1)


def _best(scores: Array, cluster: Array, order: Array, view: CacheView) -> Array:
    """The best-scored row of each cluster, int64 [B, H, S]: at place c that of cluster c; ties go to the later."""
    xp = view.xp
    worth = xp.where(view.valid, scores, xp.full_like(scores, -xp.inf))
    for key in (worth, cluster):  # by arrival, in that by score, in that by cluster: a cluster's best row comes last
        again = xp.argsort(along(key, order, axis=-1), axis=-1, stable=True)
        order = along(order, again, axis=-1)
    number = along(cluster, order, axis=-1)
    inside = xp.concat([number[..., 1:] == number[..., :-1], xp.zeros_like(number[..., :1], dtype=xp.bool)], axis=-1)
    last = xp.argsort(xp.astype(inside, xp.int64), axis=-1, stable=True)
    return along(order, last, axis=-1)
