"""An allocator of a user's own, and what may go wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvpolicy import Scored, Step

from ._mutant import COMPETING, Mutant

__all__ = ["MUTANTS", "TWINS"]


@dataclass(frozen=True)
class ByWorth:
    """Layers share the budget by how much their rows are worth; heads of a layer get the same."""

    whole_model: bool = field(default=True, init=False, repr=False)

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        worth = np.stack([self.worth(layer, step) for layer in layers], axis=1)  # [B, L]
        rows = self.shared(self.weights(worth), budget * len(layers))
        rows = np.where(self.enough(budget, step)[:, None], budget[:, None], rows)
        return [self.heads(rows[:, n], layer.view.shape[1]) for n, layer in enumerate(layers)]

    def worth(self, layer: Scored, step: Step) -> Any:
        scores, view = step.ops.host(layer.scores).astype(np.float64), layer.view
        counts = self.counts(step.ops.host(view.valid), scores)
        return 0.1 + np.tanh(np.abs(np.where(counts, scores, 0.0))).sum(axis=(1, 2))

    def counts(self, valid: Any, scores: Any) -> Any:
        return valid & np.isfinite(scores)

    def weights(self, worth: Any) -> Any:
        return worth / worth.sum(axis=1, keepdims=True)

    def shared(self, weights: Any, total: Any) -> Any:
        share = np.round(weights * total[:, None], 9)
        rows = np.floor(share).astype(np.int64)
        rank = np.argsort(np.argsort(rows - share, axis=1, kind="stable"), axis=1)
        return rows + (rank < (total - rows.sum(axis=1))[:, None])

    def enough(self, budget: Any, step: Step) -> Any:
        return np.stack([held.max(axis=1) for held in step.held]).max(axis=0) <= budget

    def heads(self, rows: Any, number: int) -> Any:
        return np.repeat(rows[:, None], number, axis=1)


class Floors(ByWorth):
    """Shares are cut to integers, and what is cut off is lost."""

    def shared(self, weights: Any, total: Any) -> Any:
        return np.floor(weights * total[:, None]).astype(np.int64)


class Rounds(ByWorth):
    """Shares are rounded one by one, and their sum drifts."""

    def shared(self, weights: Any, total: Any) -> Any:
        return np.rint(weights * total[:, None]).astype(np.int64)


class NotWhole(ByWorth):
    """Shares are not whole."""

    def shared(self, weights: Any, total: Any) -> Any:
        return weights * total[:, None]


class OneForAllHeads(ByWorth):
    """One number a layer, [B], where it is one a head."""

    def heads(self, rows: Any, number: int) -> Any:
        return rows


class AlwaysShares(ByWorth):
    """Shares out also where everybody could keep everything."""

    def enough(self, budget: Any, step: Step) -> Any:
        return np.zeros(len(budget), bool)


class MeanWorth(ByWorth):
    """Worth is compared over the whole batch."""

    def weights(self, worth: Any) -> Any:
        return np.broadcast_to(super().weights(worth).mean(axis=0), worth.shape)


class PaddingIsWorth(ByWorth):
    """What padding is worth counts too."""

    def counts(self, valid: Any, scores: Any) -> Any:
        return np.isfinite(scores)


class FirstHeadFirst(ByWorth):
    """Where rows are scarce, the first head of a layer gets those of the last one."""

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        quotas = super().allocate(budget, layers, step)
        for quota in quotas:
            given = np.where(self.enough(budget, step) | (quota.shape[1] == 1), 0, quota[:, -1])
            quota[:, 0] += given
            quota[:, -1] -= given
        return quotas


class MovingWorth(ByWorth):
    """What layers were worth in earlier requests goes into the mean."""

    def weights(self, worth: Any) -> Any:
        known = getattr(self, "_known", worth)
        object.__setattr__(self, "_known", (known + worth) / 2 if known.shape == worth.shape else worth)
        return super().weights(self._known)


@dataclass(frozen=True)
class Evenly:
    """All heads get the same; known before there are scores."""

    whole_model: bool = field(default=False, init=False, repr=False)

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        return [np.repeat(budget[:, None], layer.view.shape[1], axis=1) for layer in layers]

    def ahead(self, budget: Any, layer: int, num_layers: int, heads: int, step: Step) -> Any:
        return np.repeat(budget[:, None], heads, axis=1)


class HalfAhead(Evenly):
    """Ahead of the scores the lower layers get more: the two faces do not say the same."""

    def ahead(self, budget: Any, layer: int, num_layers: int, heads: int, step: Step) -> Any:
        more = (budget - 1) * (0 if 2 * layer + 1 == num_layers else 1 if 2 * layer < num_layers else -1)
        return np.repeat((budget + more)[:, None], heads, axis=1)


TWINS = (ByWorth(), Evenly())
SHORT = {**COMPETING, "layers": 2}
MUTANTS = (
    Mutant("floors-each-share", Floors, law="budget_exact", also=("well_formed",)),
    Mutant("rounds-each-share", Rounds, law="budget_exact", sizes={**COMPETING, "layers": 3}),
    Mutant("other-numbers-ahead", HalfAhead, law="ahead_allocates"),
    Mutant("shares-not-whole", NotWhole, law="well_formed"),
    Mutant("quota-by-layer", OneForAllHeads, law="well_formed", backends=("numpy",)),
    Mutant("shares-what-is-enough", AlwaysShares, law="noop_within_budget"),
    Mutant("worth-of-the-batch", MeanWorth, law="batch_independent", backends=("numpy",), sizes=SHORT),
    Mutant("padding-is-worth-something", PaddingIsWorth, law="padding_invariant", sizes=SHORT),
    Mutant("first-head-first", FirstHeadFirst, law="head_equivariant"),
    Mutant("worth-of-earlier-requests", MovingWorth, law="request_isolated", backends=("numpy",)),
)
