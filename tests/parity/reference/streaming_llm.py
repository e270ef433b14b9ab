"""StreamingLLM (arXiv 2309.17453): sinks and a window."""

from __future__ import annotations

from .common import Inputs, Now, Outcome, budget, simulate

__all__ = ["streaming_llm"]


def streaming_llm(
    inputs: Inputs,
    *,
    keep: float | None = None,
    rows: int | None = None,
    sinks: int = 4,
    positions: str = "original",
) -> list[Outcome]:
    """The first ``sinks`` tokens whatever the budget of k rows is, and the last ``k - sinks``.

    With ``positions="slots"`` a row stands where it is in the cache, not in the text: keys and queries are turned.
    """

    def act(now: Now) -> None:
        window = max(budget(now.seen, keep, rows) - sinks, 0)
        for heads in now.layers:
            for h, head in enumerate(heads):
                heads[h] = [row for row in head if row.position < sinks or row.position >= now.seen - window]

    return simulate(inputs, act, slots=positions == "slots")
