"""`Request`: what a model would compute for one batch, as a short value that prints as its own constructor call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from .._check import check_count
from .._repr import constructor_repr
from .._types import IMAGE
from ._numbers import Arr, rounded
from ._sizes import check_image, check_sizes

__all__ = ["Request", "Stream"]

VECTORS = ("queries", "keys", "values")


@dataclass(frozen=True, slots=True)
class Stream:
    """The arrays of a request: numpy, float64.

    Attributes:
        queries: [L, B, Hq, T, D].
        keys: [L, B, H, T, D].
        values: [L, B, H, T, Dv].
        passes: tokens of each forward pass; they add up to T.
        prompt: tokens of the first prompt, padding included.
        padding: int64 [B], left padding of each batch row.
        segment: int64 [B, T].
        dtype: of keys, values and queries.
    """

    queries: Arr
    keys: Arr
    values: Arr
    passes: tuple[int, ...]
    prompt: int
    padding: Arr
    segment: Arr
    dtype: str

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.keys.shape[3])

    @property
    def scale(self) -> float:
        """Softmax scale; sharper than a model's, so that few rows get most of the attention."""
        return float(2.0 * self.keys.shape[-1] ** -0.5)

    def alone(self, b: int) -> Stream:
        """Batch row ``b`` without its padding."""
        pad = int(self.padding[b])
        cut: dict[str, Any] = {
            name: getattr(self, name)[:, b : b + 1, :, pad:] for name in ("queries", "keys", "values")
        }
        return replace(
            self,
            **cut,
            passes=(self.passes[0] - pad, *self.passes[1:]),
            prompt=self.prompt - pad,
            padding=np.zeros(1, np.int64),
            segment=self.segment[b : b + 1, pad:],
        )

    def padded(self, more: int, seed: int) -> Stream:
        """With ``more`` padding on the left of every batch row, full of garbage."""
        rng = np.random.default_rng([seed, 1])

        def widened(data: Arr) -> Arr:
            garbage = rng.standard_normal((*data.shape[:3], more, data.shape[4]))
            return np.concatenate([10.0 * garbage, data], axis=3)

        wide: dict[str, Any] = {name: widened(getattr(self, name)) for name in VECTORS}
        return replace(
            self,
            **wide,
            passes=(self.passes[0] + more, *self.passes[1:]),
            prompt=self.prompt + more,
            padding=self.padding + more,
            segment=np.pad(self.segment, ((0, 0), (more, 0))),
        )

    def with_heads(self, order: Sequence[int]) -> Stream:
        """The heads in this order, each with its query heads."""
        chosen, groups = np.asarray(order), self.queries.shape[2] // self.keys.shape[2]
        asked = (chosen[:, None] * groups + np.arange(groups)).ravel()
        return replace(
            self, queries=self.queries[:, :, asked], keys=self.keys[:, :, chosen], values=self.values[:, :, chosen]
        )

    def chunked(self, size: int) -> Stream:
        """The first prompt in chunks of ``size`` tokens."""
        whole, rest = divmod(self.prompt, size)
        return replace(self, passes=(*(size,) * whole, *((rest,) if rest else ()), *self.passes[1:]))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A whole request for the laws about policies: a prompt, some decode steps, and perhaps a second turn.

    Args:
        seed: of all random numbers.
        layers: how many.
        batch: batch rows.
        heads: key/value heads.
        groups: query heads for each of them.
        dim: of keys, even.
        value_dim: of values.
        prompt: tokens of the first prompt, padding included.
        steps: decode steps after it.
        turn: tokens of a second turn, with one more decode step after it; 0: there is none.
        padding: left padding of each batch row, less than ``prompt``; none if empty.
        image: first and behind-the-last token of an image in each batch row (its own tokens, without padding).
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
    prompt: int = 3
    steps: int = 1
    turn: int = 0
    padding: tuple[int, ...] = ()
    image: tuple[int, int] = (0, 0)
    dtype: str = "float64"

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Request", "prompt", self.prompt, least=1)
        for name in ("steps", "turn"):
            check_count("Request", name, getattr(self, name))
        check_sizes(self, tokens=self.prompt)
        check_image("Request", self.image)

    def build(self) -> Stream:
        """The arrays."""
        rng = np.random.default_rng(self.seed)
        passes = (self.prompt, *(1,) * self.steps, *((self.turn, 1) if self.turn else ()))
        tokens = sum(passes)
        padding = np.asarray(self.padding or (0,) * self.batch, np.int64)
        token = np.arange(tokens) - padding[:, None]
        start, stop = self.image

        def drawn(heads: int, dim: int) -> Arr:
            return rounded(rng.standard_normal((self.layers, self.batch, heads, tokens, dim)), self.dtype)

        return Stream(
            queries=drawn(self.heads * self.groups, self.dim),
            keys=drawn(self.heads, self.dim),
            values=drawn(self.heads, self.value_dim),
            passes=passes,
            prompt=self.prompt,
            padding=padding,
            segment=np.where((token >= start) & (token < stop), IMAGE, 0),
            dtype=self.dtype,
        )
