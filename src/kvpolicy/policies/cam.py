"""CaM: evicted values live on in the next kept ones."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..mergers import Fold, NextKept, Prominence
from ..scorers import AttentionMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["cam"]


def cam(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    sinks: int = 4,
    recent: float = 0.5,
    count: int = 32,
    seed: int = 0,
) -> Policy:
    """Evict as H2O, and by chance of its prominence add the value of what is evicted to the next kept values.

    Formula: ``V_n += b_i * V_i / m`` for the next m kept rows n after an evicted row i, with ``b_i`` drawn with
    probability ``clip(s_i / max over kept rows of s, 0, 1)``; keys stay as they are. Values are added, not averaged.

    Source: Zhang et al., "CaM: Cache Merging for Memory-efficient LLMs Inference", ICML 2024, section 4.2.

    Good for: what H2O is good for, where evicted values should leave a trace in the output.

    Not for: values that must stay exact: a kept value grows with what it takes, and the draws decide which. Its budget
    is spent as H2O's is, so that measuring both tells what the traces are worth.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        sinks: tokens at the start that are always kept.
        recent: share of the budget that goes to the most recent rows.
        count: m.
        seed: of the draws; the same seed gives the same draws.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(first=sinks, recent=recent)
    schedule = schedule_for("cam", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))
    pipeline = Pipeline(
        schedule=schedule,
        score=AttentionMass(),
        select=select,
        merge=Fold(NextKept(count=count), Prominence(seed=seed), keys=False),
    )
    return Policy(prefill=pipeline, decode=pipeline)
