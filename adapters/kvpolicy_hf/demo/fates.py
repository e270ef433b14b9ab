"""What a Plan does with each prompt token, as plain numpy: copied out, because the table changes right after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpolicy import CacheView, Plan, Step

__all__ = ["Fate"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What one layer's plan does with each of T prompt tokens (batch row 0).

    Attributes:
        kept: float64 [T], the share of key/value heads that keep the token.
        into: int64 [T], the token that head 0 folds it into; -1 where it folds into none.
    """

    kept: np.ndarray[Any, Any]
    into: np.ndarray[Any, Any]

    @classmethod
    def everything(cls, tokens: int) -> Fate:
        """The fate of tokens that no plan touched: all kept."""
        return cls(np.ones(tokens), np.full(tokens, -1))

    @classmethod
    def of(cls, view: CacheView, plan: Plan, step: Step) -> Fate:
        """Read a plan in the coordinates of arrival instead of table rows."""
        positions = step.ops.host(view.positions)[0]  # [H, S]
        alive = step.ops.host(view.valid)[0]
        keep = step.ops.host(plan.keep)[0] & alive
        tokens = int(positions[alive].max()) + 1
        kept = np.zeros((len(positions), tokens))
        for head in range(len(positions)):
            kept[head, positions[head, alive[head]]] = keep[head, alive[head]]
        into = np.full(tokens, -1)
        if plan.into is not None:
            targets, rows = step.ops.host(plan.into)[0, 0], np.flatnonzero(alive[0] & ~keep[0])  # [S, M]
            best = np.zeros(len(targets), dtype=np.int64)
            if plan.weight is not None:
                weight = np.where(targets >= 0, step.ops.host(plan.weight)[0, 0], -np.inf)
                best = weight.argmax(axis=-1)
            chosen = targets[rows, best[rows]]
            into[positions[0, rows]] = np.where(chosen >= 0, positions[0, chosen], -1)
        return cls(kept.mean(axis=0), into)
