"""A policy that knows the future: the record tells it what every row is still going to receive."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from kvpolicy import CacheView, ImportanceScorer, Pipeline, Policy, Scheduler, Scores, Step

from .attention import shares
from .record import Record

__all__ = ["FutureMass", "clairvoyant"]


def clairvoyant(record: Record, schedule: Scheduler, *, decode: bool = True) -> Policy:
    """Keep, in each head, the rows that will receive the most attention from the record's remaining queries.

    What it bounds: with ``decode=False`` and a budget of k rows for every head, no choice of k prompt rows leaves the
    decode steps a larger sum of `Replay.mass`: the sum runs over rows, and each head takes its k largest terms. It is
    no bound of the output error, nor of the recall; nor of policies that hold more rows, or give some heads and layers
    more than others; nor, with ``decode=True``, of what a cleverer order of evictions could reach: each step drops the
    rows whose remaining sum is least, and a small sum that comes at once may be worth more than a larger one that comes
    after the row had to make room.

    Args:
        record: the request that it will be replayed on.
        schedule: the budget, as in a `Pipeline`.
        decode: go on evicting while decoding; False compresses the prompt once.
    """
    pipeline = Pipeline(schedule=schedule, score=FutureMass(record))
    return Policy(prefill=pipeline, decode=pipeline if decode else None)


@final
@dataclass(frozen=True, slots=True, eq=False)
class FutureMass(ImportanceScorer):
    """The attention that a row will receive, ``s_j = sum over the record's later decode queries i of A[i, j]``.

    ``A`` is full attention over all tokens, the mean over the query heads that share a key/value head.

    Args:
        record: the request that it is used on; for any other it means nothing.
    """

    record: Record
    _sums: dict[int, Tensor] = field(default_factory=dict, init=False)  # by layer, made when first asked for

    def __repr__(self) -> str:
        return f"FutureMass({self.record!r})"

    def score(self, view: CacheView, step: Step, /) -> Scores:
        """Sums over the queries from ``step.seen`` on, float64 [1, H, S]."""
        if view.layer not in self._sums:
            self._sums[view.layer] = _remaining(self.record, view.layer)
        rest = self._sums[view.layer][:, :, int(step.seen[0]) - self.record.prompt]
        return rest.gather(-1, view.positions.clamp(min=0))


def _remaining(record: Record, layer: int) -> Tensor:
    """float64 [1, H, T + 1, N]: at t, what each token receives from decode steps t and later; zeros at T."""
    queries, keys = record.queries[layer][:, :, record.prompt :], record.keys[layer]
    later = torch.ones(record.steps, record.length, dtype=torch.bool).triu(record.prompt + 1)
    hidden = torch.zeros(later.shape, dtype=torch.float64).masked_fill(later, -torch.inf)
    received = shares(queries, keys, record.scales[layer], bias=hidden).mean(dim=2)
    sums = received.flip(2).cumsum(2).flip(2)
    return torch.nn.functional.pad(sums, (0, 0, 0, 1))
