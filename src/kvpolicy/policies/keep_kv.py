"""KeepKV: merging that the current query does not feel."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..mergers import Fold, MostSimilar, ZeroPerturbation
from ..scorers import AttentionMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["keep_kv"]


def keep_kv(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    first: int = 4,
    recent: float = 0.5,
    threshold: float = 0.8,
) -> Policy:
    """Evict as H2O, and merge into similar keys such that the output of the current step stays what it was.

    Formula: attention weighs a row by its votes p (the column ``count``): ``o = sum p_i s_i v_i / sum p_i s_i``. With
    ``w = p * s``, ``v' = (w_e v_e + w_c v_c) / (w_e + w_c)`` and ``k'`` the same mean of keys, scaled so that ``q . k'
    = ln((w_e + w_c) / (p_e + p_c))``.

    Source: Tian et al., "KeepKV: Achieving Periodic Lossless KV Cache Compression for Efficient LLM Inference", arXiv
    2504.09936, section 4.

    Good for: merging with the least harm to the step at hand: its output stays what it was where rows merge.

    Not for: later queries, for which nothing is promised: the merged row is right for the query that it was made for.
    It needs counts in the attention, which every step pays for.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        first: tokens at the start that are always kept.
        recent: share of the budget that goes to the most recent rows.
        threshold: cosine similarity of keys from which rows merge; others are dropped.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(first=first, recent=recent)
    schedule = schedule_for("keep_kv", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))
    pipeline = Pipeline(
        schedule=schedule,
        score=AttentionMass(),
        select=select,
        merge=Fold(MostSimilar(threshold=threshold), ZeroPerturbation()),
    )
    return Policy(prefill=pipeline, decode=pipeline, count_bias=True)
