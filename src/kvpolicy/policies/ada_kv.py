"""AdaKV: SnapKV whose heads compete for the rows of their layer."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..allocators import AdaptiveHeads
from ..scorers import Pooled, WindowMass
from ._budget import schedule_for

__all__ = ["ada_kv"]


def ada_kv(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    window: int = 32,
    kernel: int = 7,
    floor: float = 0.2,
) -> Policy:
    """SnapKV, with the rows of a layer shared among its heads by one ranking of all their scores.

    Formula: scores as in SnapKV; head h gets ``(1 - floor) * count[h] + floor * k`` rows, where count is its share of
    the best ``H * k`` scores of the layer. Heads are ragged and so is the memory. Prompt only.

    Source: Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
    Inference", NeurIPS 2025, arXiv 2407.11550, algorithms 1 and 2.

    Good for: what SnapKV is good for, where some heads of a layer spread their attention and others look at few tokens:
    rows go to those that need them.

    Not for: the cases that SnapKV is not for, and backends that must gather ragged heads for each pass: the rows are
    fewer, the reading is not simpler.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        window: queries at the end of the prompt that vote.
        kernel: odd width of the pooling.
        floor: share of the average budget that every head is sure of.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    schedule = schedule_for("ada_kv", keep=keep, rows=rows, memory=memory)
    return Policy(
        prefill=Pipeline(
            schedule=schedule,
            score=Pooled(WindowMass(window=window), kernel=kernel),
            allocate=AdaptiveHeads(floor=floor),
        )
    )
