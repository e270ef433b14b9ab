"""What several scorers share: reductions over heads, safe lengths, and how queries and rows stand to each other."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from .._heads import all_rows, own_rows
from .._namespace import along
from .._placed import placed
from .._protocols import Backend
from .._step import Step
from .._tokens import numbered
from .._types import Array, CacheView, Scores

__all__ = ["Heads", "arrival", "asked", "at", "lengths", "mean_by_token", "over_heads", "unit", "wide"]

Heads: TypeAlias = Literal["each", "mean"]


def over_heads(view: CacheView, scores: Scores, heads: Heads, step: Step) -> Scores:
    """Scores [B, H, S] as they are, or for every token their mean over the heads of the layer that hold it."""
    if heads == "each":
        return scores
    xp = view.xp
    if view.alike:
        return xp.broadcast_to(xp.mean(step.heads.all(scores), axis=1, keepdims=True), view.shape)
    scores, valid, positions = all_rows(view, scores, step)
    shape = tuple(scores.shape)
    mean = xp.broadcast_to(xp.mean(scores, axis=1, keepdims=True), shape)
    alike = xp.all((positions == positions[:, :1]) & (valid == valid[:, :1]))
    flat = (shape[0], 1, shape[1] * shape[2])
    apart = mean_by_token(xp, step.ops, *(xp.reshape(data, flat) for data in (scores, valid, positions)))
    return own_rows(view, xp.where(alike, mean, xp.astype(xp.reshape(apart, shape), mean.dtype)), step)


def mean_by_token(xp: Any, ops: Backend, scores: Array, valid: Array, positions: Array) -> Array:
    """For each row [B, H, N] the mean over all valid rows of its head that stand at the same position.

    +inf in one of them is +inf in all.
    """
    token = numbered(xp, xp.where(valid, positions, xp.full_like(positions, -1)))
    endless = scores == float("inf")
    sums = [
        ops.segment_sum(xp.astype(data, scores.dtype)[..., None], token[..., None])
        for data in (xp.where(valid & ~endless, scores, xp.zeros_like(scores)), valid, valid & endless)
    ]
    total, held, ends = (xp.astype(along(data, token, axis=-1), scores.dtype) for data in sums)
    mean = total / xp.where(held > 0, held, xp.ones_like(held))
    return xp.where(ends > 0, xp.full_like(mean, float("inf")), mean)


def arrival(view: CacheView, step: Step) -> Array:
    """How many tokens of its batch row arrived before each row, float32 [B, H, S]: as if there were no padding."""
    return view.xp.astype(view.positions - placed(view, step.padding)[:, None, None], view.xp.float32)


def wide(xp: Any, data: Array) -> Array:
    """In float32, or in float64 where it is that already."""
    return data if data.dtype == xp.float64 else xp.astype(data, xp.float32)


def lengths(xp: Any, vectors: Array) -> Array:
    """Euclidean lengths of vectors [..., D], kept as [..., 1]; squares neither overflow nor vanish."""
    largest = xp.max(xp.abs(vectors), axis=-1, keepdims=True)
    sound = (largest > 0) & xp.isfinite(largest)
    scaled = vectors / xp.where(sound, largest, xp.ones_like(largest))
    length = largest * xp.sqrt(xp.sum(scaled * scaled, axis=-1, keepdims=True))
    return xp.where(sound, length, largest)


def unit(xp: Any, vectors: Array) -> Array:
    """Vectors [..., D] of length one; one of no length, or an infinite one, becomes zero."""
    length = lengths(xp, vectors)
    sound = (length > 0) & xp.isfinite(length)
    return xp.where(sound, vectors, xp.zeros_like(vectors)) / xp.where(sound, length, xp.ones_like(length))


def asked(view: CacheView, step: Step, counted: Array) -> Array:
    """How many of the counted queries (bool [B, Q]) see each valid row, int64 [B, H, S]."""
    xp, places = view.xp, step.asked.sees
    number = xp.astype(counted, xp.int64)[:, None, :]
    if places.shape[1] == 1:
        sees = view.valid & (view.positions <= places[:, None, :])
        return xp.astype(sees, xp.int64) * number
    order, back = _merged(view, places)
    number = xp.broadcast_to(number, (*view.shape[:2], places.shape[1]))
    line = along(xp.concat([xp.zeros_like(view.positions), number], axis=-1), order, axis=-1)
    before = along(xp.cumulative_sum(line, axis=-1), back, axis=-1)[..., : view.shape[2]]
    after = xp.sum(number, axis=-1, keepdims=True) - before
    return xp.where(view.valid, after, xp.zeros_like(after))


def at(view: CacheView, data: Array, places: Array) -> Array:
    """The data [B, H, S] of the valid row that stands at each position (int64 [B, Q]), [B, H, Q]; 0 without one."""
    xp = view.xp
    order, back = _merged(view, places)
    none = xp.zeros((*view.shape[:2], places.shape[1]), dtype=data.dtype, device=data.device)
    known = xp.where(view.valid, data, xp.zeros_like(data))
    line = along(xp.concat([known, none], axis=-1), order, axis=-1)
    place = along(_places(view, places), order, axis=-1)
    # A query stands right behind the row of its position.
    own = xp.where(place[..., 1:] == place[..., :-1], line[..., :-1], xp.zeros_like(line[..., 1:]))
    own = xp.concat([xp.zeros_like(line[..., :1]), own], axis=-1)
    return along(own, back, axis=-1)[..., view.shape[2] :]


def _merged(view: CacheView, places: Array) -> tuple[Array, Array]:
    """Rows and queries in one line by position, a row before the query of its position; the order and its inverse.

    So that each can be counted against the other without a matrix of all pairs.
    """
    xp = view.xp
    order = xp.argsort(_places(view, places), axis=-1, stable=True)
    return order, xp.argsort(order, axis=-1)


def _places(view: CacheView, places: Array) -> Array:
    """Positions of all rows, -1 where there is none, and then of all queries, [B, H, S + Q]."""
    xp = view.xp
    rows = xp.where(view.valid, view.positions, xp.full_like(view.positions, -1))
    queries = xp.broadcast_to(places[:, None, :], (*view.shape[:2], places.shape[1]))
    return xp.concat([rows, queries], axis=-1)
