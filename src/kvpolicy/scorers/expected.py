"""Scores from the attention that is still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from .._check import check_choice, check_count, check_number
from .._errors import CacheError
from .._protocols import ImportanceScorer
from .._repr import constructor_repr
from .._step import Step
from .._types import Array, CacheView, Rotate, Scores
from ._common import lengths, wide

__all__ = ["ExpectedAttention"]

_ELEMENTS = 1 << 22  # of a temporary array


@final
@dataclass(frozen=True, slots=True)
class ExpectedAttention(ImportanceScorer):
    """The attention a row can expect of queries drawn like the latest ones, times the length of its value.

    The last ``window`` queries of a query head, before their rotary embedding, have the mean ``mu`` and the covariance
    ``C``. With ``R`` the mean of the rotations to the next ``future`` positions and s the softmax scale, a row's
    expected logit is ``z_j = s * k_j.(R mu) + s^2 / 2 * k_j^T R C R^T k_j``; its score is ``(mean over the group of
    softmax(z)_j + epsilon) * |v_j|``. Source: Expected Attention (arXiv 2510.00636, section 3).

    Args:
        window: how many of the latest queries tell what queries are like.
        future: how many positions ahead are looked at.
        epsilon: added to the share, so that a long value counts although nobody asks for it.
        covariance: False leaves the second term out.

    Raises:
        PolicyError: if an argument is out of range.
    """

    window: int = 128
    future: int = 512
    epsilon: float = 0.0
    covariance: bool = True

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("ExpectedAttention", "window", self.window, least=1)
        check_count("ExpectedAttention", "future", self.future, least=1)
        check_number("ExpectedAttention", "epsilon", self.epsilon, least=0)
        check_choice("ExpectedAttention", "covariance", self.covariance, (True, False))

    @property
    def needs_rotate(self) -> bool:
        """Queries are turned to where they are expected."""
        return True

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """One pass over the keys.

        Raises:
            CacheError: if the step brings no rotary embedding.
            UnsupportedModelError: if the model caps its logits.
        """
        step.require_uncapped("ExpectedAttention")
        if step.rotate is None:
            raise CacheError(
                "ExpectedAttention turns queries to future positions, which needs the model's rotary embedding; this "
                "step has none (rotate=None). Hint: Session(rotate=...), or a PolicyCache of a model with plain rotary "
                "positions."
            )
        xp = view.xp
        mean, spread = self._queries(xp, step, step.rotate)
        batch, heads, rows = view.shape
        mean = xp.reshape(mean, (batch, heads, -1, mean.shape[-1]))
        spread = xp.reshape(spread, (*mean.shape, mean.shape[-1]))
        chunk = max(1, _ELEMENTS // max(1, batch * heads * mean.shape[2] * mean.shape[3]))
        logits = xp.concat(
            [
                self._logits(xp, wide(xp, view.keys[:, :, start : start + chunk]), mean, spread, step.scale)
                for start in range(0, rows, chunk)
            ],
            axis=-1,
        )
        if step.count_bias:
            count = xp.astype(view.columns["count"].data, logits.dtype)
            logits = logits + xp.log(xp.where(view.valid, count, xp.ones_like(count)))[:, :, None, :]
        sinks = None if step.sinks is None else xp.reshape(xp.astype(step.sinks, logits.dtype), (1, heads, -1, 1))
        share = xp.mean(_softmax(xp, logits, view.valid[:, :, None, :], sinks), axis=2)
        return (share + self.epsilon) * lengths(xp, wide(xp, view.values))[..., 0]

    def _queries(self, xp: Any, step: Step, rotate: Rotate) -> tuple[Array, Array]:
        """``R mu`` [B, Hq, D] and ``R C R^T`` [B, Hq, D, D], as seen from the last query's position."""
        latest = step.latest(self.window)
        queries, places = wide(xp, latest.queries), latest.query_positions
        last = xp.max(xp.where(latest.query_valid, places, xp.full_like(places, -1)), axis=-1, keepdims=True)
        # To the last position and on from there: only differences matter, so padding does not.
        turn = xp.where(latest.query_valid, last - places, xp.zeros_like(places))
        turned = rotate(queries, xp.broadcast_to(turn[:, None, :], queries.shape[:3]))
        ahead = _sum_ahead(xp, rotate, turned, self.future) / self.future
        counts = xp.astype(latest.query_valid, ahead.dtype)[:, None, :, None]
        number = xp.sum(counts, axis=2)
        number = xp.where(number > 0, number, xp.ones_like(number))
        mean = xp.sum(ahead * counts, axis=2) / number
        off = (ahead - mean[:, :, None, :]) * counts
        return mean, xp.matmul(xp.matrix_transpose(off), off) / number[..., None]

    def _logits(self, xp: Any, keys: Array, mean: Array, spread: Array, scale: float) -> Array:
        """Expected logits [B, H, G, N] of keys [B, H, N, D] for queries of mean [B, H, G, D]."""
        logits = scale * xp.matmul(mean, xp.matrix_transpose(keys))
        if self.covariance:
            # The group's matrices side by side: broadcasting the keys over them would copy the keys.
            side = xp.reshape(xp.permute_dims(spread, (0, 1, 3, 2, 4)), (*keys.shape[:2], keys.shape[-1], -1))
            spanned = xp.reshape(xp.matmul(keys, side), (*keys.shape[:3], mean.shape[2], keys.shape[-1]))
            square = xp.sum(spanned * keys[:, :, :, None, :], axis=-1)
            logits = logits + scale**2 / 2 * xp.matrix_transpose(square)
        return logits


def _sum_ahead(xp: Any, rotate: Rotate, vectors: Array, count: int) -> Array:
    """``sum of rotate(vectors, t) over t = 1 .. count``, by doubling: as many turns as ``count`` has binary digits."""

    def turned(data: Array, by: int) -> Array:
        return rotate(data, xp.full(data.shape[:3], by, dtype=xp.int64, device=data.device))

    done, total = 1, turned(vectors, 1)
    for digit in f"{count:b}"[1:]:
        total, done = total + turned(total, done), 2 * done
        if digit == "1":
            done += 1
            total = total + turned(vectors, done)
    return total


def _softmax(xp: Any, logits: Array, valid: Array, sinks: Array | None) -> Array:
    """Over the valid places of the last axis and its sink; zeros elsewhere, also where none is valid."""
    lowest = xp.full_like(logits, float("-inf"))
    known = xp.where(valid, logits, lowest)
    if sinks is not None:
        known = xp.concat([known, xp.broadcast_to(sinks, (*known.shape[:-1], 1))], axis=-1)
    top = xp.max(known, axis=-1, keepdims=True)
    power = xp.exp(known - xp.where(xp.isfinite(top), top, xp.zeros_like(top)))
    total = xp.sum(power, axis=-1, keepdims=True)
    return power[..., : logits.shape[-1]] / xp.where(total > 0, total, xp.ones_like(total))
