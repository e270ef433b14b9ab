"""`Table`: the tables of a few layers in any state, as a short value that prints as its own constructor call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from .._check import check_choice, check_count, check_share
from .._errors import PolicyError
from .._repr import constructor_repr
from .._step import Phase
from .._types import IMAGE, Column
from ._numbers import Arr, rounded
from ._scene import GARBAGE, Scene, SceneLayer
from ._sizes import check_image, check_sizes

__all__ = ["SCORES", "VECTORS", "Table"]

VECTORS = ("normal", "axes", "zeros", "equal", "dominant")
SCORES = ("normal", "close", "ties", "equal", "infinite", "worthless", "denormal", "dominant")
_CHOICES = {
    "merged": (False, True),
    "shuffled": (False, True),
    "vectors": VECTORS,
    "scores": SCORES,
    "phase": ("prefill", "decode"),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cache tables for the laws about single stages: one or several layers, filled from a seed.

    Of ``tokens`` tokens that have passed, the last ``now`` belong to this pass, and some of the earlier ones may have
    left. What the rows hold:

    - ``vectors``: ``"normal"``; ``"axes"``, plus or minus unit vectors, whose similarities tie exactly; ``"zeros"``,
      about half of the keys and half of the values zero; ``"equal"``; ``"dominant"``, one long key and the others zero.
    - ``scores``: ``"normal"``; ``"close"``, which float16 does not tell apart; ``"ties"`` of -1, 0, 1; ``"equal"``;
      ``"infinite"``, some of them, both signs; ``"worthless"``, all -inf; ``"denormal"``; ``"dominant"``, one row has
      everything.

    Args:
        seed: of all random numbers.
        layers: how many.
        batch: batch rows.
        heads: key/value heads.
        groups: query heads for each of them.
        dim: of keys, even, so that they can be turned.
        value_dim: of values.
        tokens: T, padding included.
        now: tokens of this pass, 1 to T.
        padding: left padding of each batch row, less than T; none if empty.
        evicted: share of the earlier rows that have left, in [0, 1].
        empty: empty slots among the earlier rows.
        merged: rows stand for several tokens.
        shuffled: the row of this pass lies anywhere, as when it was written into a free slot; needs ``now=1``.
        image: first and behind-the-last token of an image in each batch row (its own tokens, without padding).
        vectors: kind of keys and values.
        scores: kind of scores.
        quota: rows for each head; None: another number for each, 0 and too many among them.
        phase: ``"prefill"`` or ``"decode"``.
        dtype: of keys, values and queries.

    Raises:
        PolicyError: if an argument is out of range.
    """

    seed: int = 0
    layers: int = 1
    batch: int = 1
    heads: int = 1
    groups: int = 1
    dim: int = 2
    value_dim: int = 1
    tokens: int = 3
    now: int = 1
    padding: tuple[int, ...] = ()
    evicted: float = 0.0
    empty: int = 0
    merged: bool = False
    shuffled: bool = False
    image: tuple[int, int] = (0, 0)
    vectors: str = "normal"
    scores: str = "normal"
    quota: int | None = 1
    phase: Literal["prefill", "decode"] = "prefill"
    dtype: str = "float64"

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        for name in ("tokens", "now"):
            check_count("Table", name, getattr(self, name), least=1)
        check_sizes(self, tokens=self.tokens)
        check_image("Table", self.image)
        check_share("Table", "evicted", self.evicted, zero=True)
        check_count("Table", "empty", self.empty)
        if self.quota is not None:
            check_count("Table", "quota", self.quota)
        for name, allowed in _CHOICES.items():
            check_choice("Table", name, getattr(self, name), allowed)
        if self.now > self.tokens:
            raise PolicyError(f"Table(now={self.now}): only {self.tokens} tokens have passed. Hint: tokens={self.now}.")
        if self.shuffled and self.now > 1:
            raise PolicyError(
                f"Table(shuffled=True, now={self.now}): rows of a longer pass end the table. Hint: now=1."
            )

    @property
    def left(self) -> tuple[int, ...]:
        """Left padding of each batch row."""
        return self.padding or (0,) * self.batch

    def build(self) -> Scene:
        """The arrays."""
        rng = np.random.default_rng(self.seed)
        tokens = rng.standard_normal((self.layers, self.batch, self.heads * self.groups, self.tokens, self.dim))
        queries = rounded(tokens, self.dtype)
        return Scene(
            layers=tuple(self._layer(rng) for _ in range(self.layers)),
            queries=queries,
            now=self.now,
            padding=np.asarray(self.left, np.int64),
            budget=np.maximum(self._quota(rng)[:, 0], 1),
            shuffled=self.shuffled,
            phase=Phase(self.phase),
            dtype=self.dtype,
            scale=self.dim**-0.5,
            sinks=np.random.default_rng([self.seed, 5]).standard_normal((self.layers, self.heads * self.groups)),
        )

    def _layer(self, rng: np.random.Generator) -> SceneLayer:
        before = self.tokens - self.now
        positions = self._positions(rng, before)
        left = np.asarray(self.left)[:, None, None]
        valid = (positions >= left) & (positions >= 0)
        shape = valid.shape
        count = np.where(valid, rng.integers(1, 5, shape) if self.merged else 1, 0).astype(np.float32)
        token = positions - left
        start, stop = self.image
        shown = np.where(valid & (token >= start) & (token < stop), IMAGE, 0)
        quota = self._quota(rng)
        keys, values = self._keys(rng, valid), self._values(rng, shape)
        alone = ~valid[..., None]
        return SceneLayer(
            keys=rounded(np.where(alone, GARBAGE, keys), self.dtype),
            values=rounded(np.where(alone, -GARBAGE, values), self.dtype),
            positions=positions,
            valid=valid,
            columns={"count": Column(count, "sum"), "segment": Column(shown)},
            scores=self._scores(rng, valid),
            keep=_some(rng, valid, quota),
            quota=quota,
        )

    def _positions(self, rng: np.random.Generator, before: int) -> Arr:
        """int64 [B, H, S]; those of earlier passes first."""
        heads: list[Arr] = []
        for _ in range(self.batch * self.heads):
            stays = np.flatnonzero(rng.random(before) >= self.evicted)
            heads.append(rng.permutation(stays))
        room = max(len(stays) for stays in heads) + (self.empty if before or self.shuffled else 0)
        filled = np.full((len(heads), room), -1, np.int64)
        for line, stays in zip(filled, heads, strict=True):
            line[rng.permutation(room)[: len(stays)]] = stays
        now = np.broadcast_to(np.arange(before, self.tokens), (len(heads), self.now))
        positions = np.concatenate([filled, now], axis=1)
        if self.shuffled:
            positions = rng.permuted(positions, axis=1)
        return positions.reshape(self.batch, self.heads, -1)

    def _keys(self, rng: np.random.Generator, valid: Arr) -> Any:
        dim, shape = self.dim, (*valid.shape, self.dim)
        normal = rng.standard_normal(shape)
        if self.vectors == "axes":
            sign = rng.integers(0, 2, (*valid.shape, 1)) * 2.0 - 1.0
            return np.eye(dim)[rng.integers(0, dim, valid.shape)] * sign
        if self.vectors == "zeros":
            return _half_zero(rng, normal)
        if self.vectors == "equal":
            return np.broadcast_to(3.0 * np.eye(dim)[0], shape)
        if self.vectors == "dominant":
            return np.where(_one(rng, valid)[..., None], np.full(dim, 100.0), 0.0)
        return normal

    def _values(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        normal = rng.standard_normal((*shape, self.value_dim))
        return _half_zero(rng, normal) if self.vectors == "zeros" else normal

    def _scores(self, rng: np.random.Generator, valid: Arr) -> Any:
        normal = rng.standard_normal(valid.shape)
        if self.scores == "close":
            return 1.0 + 1e-4 * normal
        if self.scores == "ties":
            return rng.integers(-1, 2, valid.shape).astype(np.float64)
        if self.scores == "equal":
            return np.full(valid.shape, 0.25)
        if self.scores == "infinite":
            return np.where(normal > 0.7, np.inf, np.where(normal < -0.7, -np.inf, normal))
        if self.scores == "worthless":
            return np.full(valid.shape, -np.inf)
        if self.scores == "denormal":
            return 5e-324 * rng.integers(0, 4, valid.shape)
        if self.scores == "dominant":
            return np.where(_one(rng, valid), 1e6, 0.0)
        return normal

    def _quota(self, rng: np.random.Generator) -> Arr:
        shape = (self.batch, self.heads)
        drawn = rng.integers(0, self.tokens + 2, shape)
        return drawn if self.quota is None else np.full(shape, self.quota, np.int64)


def _half_zero(rng: np.random.Generator, vectors: Arr) -> Arr:
    """About half of them zero in all their parts."""
    return np.where(rng.random((*vectors.shape[:-1], 1)) < 0.5, vectors, 0.0)


def _one(rng: np.random.Generator, valid: Arr) -> Arr:
    """One valid row of each head that has any, bool [B, H, S]."""
    drawn = np.where(valid, rng.random(valid.shape), -1.0)
    one: Arr = (drawn == drawn.max(axis=-1, keepdims=True)) & valid
    return one


def _some(rng: np.random.Generator, valid: Arr, quota: Sequence[int] | Arr) -> Arr:
    """As many valid rows of each head as its quota says, by chance, bool [B, H, S]."""
    order = np.argsort(np.where(valid, rng.random(valid.shape), 2.0), axis=-1)
    rank = np.argsort(order, axis=-1)
    some: Arr = (rank < np.asarray(quota)[..., None]) & valid
    return some
