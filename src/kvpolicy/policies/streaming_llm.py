"""StreamingLLM: sinks and a window."""

from __future__ import annotations

from typing import Literal

from .._policy import Pipeline, Policy
from ..scorers import Recency
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["streaming_llm"]


def streaming_llm(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    sinks: int = 4,
    positions: Literal["original", "slots"] = "original",
) -> Policy:
    """Keep the first few rows and the most recent ones.

    Formula: rows ``0 .. sinks - 1`` and the last ``k - sinks`` of a budget of k.

    Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, arXiv 2309.17453,
    section 3.2; "Local" in the Elastic Cache paper.

    Good for: streams without an end, and the least work: no attention is looked at, and the rows that stay are known
    ahead.

    Not for: questions about the middle of a prompt: it is gone, whatever it said.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        sinks: tokens at the start that are always kept.
        positions: where the kept keys stand: where they arrived, or re-indexed inside the cache as in the paper.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(first=sinks)
    schedule = schedule_for("streaming_llm", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))
    pipeline = Pipeline(schedule=schedule, score=Recency(), select=select)
    return Policy(prefill=pipeline, decode=pipeline, positions=positions)
