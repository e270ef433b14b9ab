"""H2O (arXiv 2306.14048): heavy hitters and a window."""

from __future__ import annotations

from .common import Inputs, Now, Outcome, budget, simulate
from .selection import stays
from .statistics import masses

__all__ = ["h2o"]


def h2o(inputs: Inputs, *, keep: float | None = None, rows: int | None = None, recent: float = 0.5) -> list[Outcome]:
    """Of a budget of k rows the last ``floor(recent * k)``, and the most attended of the rest."""

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        for heads in now.layers:
            for h, head in enumerate(heads):
                heads[h] = [head[n] for n in stays(head, masses(head), quota, recent=recent)]

    return simulate(inputs, act)
