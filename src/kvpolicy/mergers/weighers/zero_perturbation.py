"""Merging that does not change what the latest query reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from array_api_compat import array_namespace

from ..._check import check_number
from ..._namespace import along
from ..._plan import Assignment, Scored, Selection, Weights
from ..._protocols import Weigher
from ..._repr import constructor_repr
from ..._step import Step
from ..._types import Array, CacheView
from ._common import at_target, folded, normalised, shared_count, summed, wide

__all__ = ["ZeroPerturbation"]


@final
@dataclass(frozen=True, slots=True)
class ZeroPerturbation(Weigher):
    """Rows weigh what the latest query pays them, and the merged key is scaled so that it is paid their sum.

    With q that query (the mean over the query heads of a group), ``l_j = scale * q.k_j``, ``c`` the column ``count``
    and ``w_j = c_j exp(l_j)``, over the kept row and all that fold into it: weights ``w_j / W`` with ``W = sum w_j``
    (convex), and the key times ``ln(W / sum c_j) / (sum w_j l_j / W)``. Attention with ``+ log(count)`` then gives that
    query the output that it had before, exactly where a head has a query head of its own. A factor outside
    ``[1/limit, limit]`` would change the key beyond recognition and is left out; the output then changes. With several
    targets a row's count is split evenly among them.

    Source: KeepKV (arXiv 2504.09936, section 3.3), for the current query; what later queries pay is not predicted.

    Args:
        limit: the largest factor on a key, at least 1; 1 leaves all keys at their weighted mean.
    """

    needs_count_bias: ClassVar[bool] = True

    limit: float = 2.0

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_number("ZeroPerturbation", "limit", self.limit, least=1)

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Weights:
        """Shares of the attention paid, and the scale of each merged key.

        Raises:
            UnsupportedModelError: if the model caps its logits.
        """
        step.require_uncapped("ZeroPerturbation")
        view, xp, into = scored.view, scored.view.xp, assignment.into
        count, share = shared_count(view, into, "ZeroPerturbation")
        merged = folded(view, into, step) > 0
        logit = _logits(view, step)
        each = xp.where(into >= 0, logit[..., None], xp.zeros_like(share))
        # Everything below is relative to the largest logit of each merged row: no exponential can overflow.
        top = xp.where(merged, xp.maximum(logit, _largest(each, into, step)), logit)
        paid = share * xp.exp(xp.where(into >= 0, each - at_target(top, into), each))
        own = count * xp.exp(logit - top)
        one = xp.ones_like(count)
        total = xp.where(merged, own + summed(paid, into, step), one)
        tokens = xp.where(merged, count + summed(share, into, step), one)
        due = top + xp.log(total / tokens)
        got = (own * logit + summed(paid * each, into, step)) / total
        near = merged & (got != 0) & (xp.abs(due) <= self.limit * xp.abs(got))  # else the quotient may overflow
        scale = due / xp.where(near, got, one)
        fits = near & (scale >= 1 / self.limit)
        return replace(normalised(paid, own, assignment, step), key_scale=xp.where(fits, scale, one))


def _logits(view: CacheView, step: Step) -> Array:
    """What the latest query asks of each row, [B, H, S]."""
    xp, (batch, heads, _) = view.xp, view.shape
    queries = xp.astype(step.latest(1).queries, wide(view))
    query = xp.mean(xp.reshape(queries, (batch, heads, -1, queries.shape[-1])), axis=2)
    return step.scale * xp.matmul(xp.astype(view.keys, wide(view)), query[..., None])[..., 0]


def _largest(data: Array, into: Array, step: Step) -> Array:
    """The largest of what folds into each row, [B, H, S]; 0 where nothing does."""
    xp, shape = array_namespace(into), into.shape
    data, into = (xp.reshape(array, (*shape[:2], -1)) for array in (data, into))
    by_size = xp.argsort(data, axis=-1, stable=True)
    by_target = xp.argsort(along(into, by_size, axis=-1), axis=-1, stable=True)
    order = along(by_size, by_target, axis=-1)
    data, into = (along(array, order, axis=-1) for array in (data, into))
    last = xp.concat([into[..., 1:] != into[..., :-1], xp.ones_like(into[..., :1], dtype=xp.bool)], axis=-1)
    only = xp.where(last, into, xp.full_like(into, -1))
    return summed(xp.reshape(data, shape), xp.reshape(only, shape), step)
