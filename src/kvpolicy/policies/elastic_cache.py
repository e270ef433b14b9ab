"""Elastic Cache: the reference composition."""

from __future__ import annotations

from typing import Literal

from .._check import choose
from .._policy import Pipeline, Policy
from ..mergers import Drop, Fold, Mean, MostSimilar, NearestPosition
from ..scorers import AttentionMass, FixedPoint, Recency, Shared
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["elastic_cache"]


def elastic_cache(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    first: int = 1,
    last: int = 1,
    distance: int = 25,
    merge: Literal["mean", "evict", "cluster"] = "mean",
    statistic: Literal["sum", "mean", "moving"] = "sum",
    sets: Literal["layer", "head", "shared"] = "layer",
    discard: Literal["fixed", "recent", "frequency"] = "fixed",
) -> Policy:
    """Merge the prompt around its most attended rows, then evict at a fixed point while decoding.

    Formula: prefill keeps the top rows of ``s_j = sum_i mean_h A[h, i, j]``, one set for all heads of a layer, and
    replaces each of them by the mean of itself and the dropped rows nearest to it by position (the protected first and
    last rows stay as they are, as in the released code); decode removes row ``max(prompt_kept - distance, first)``
    whenever there are more than ``round(keep * seen)``.

    Source: Liu et al., "Efficient Inference of Vision Instruction-Following Models with Elastic Cache", ECCV 2024,
    arXiv 2407.18121, sections 3.2 and 3.3.

    Good for: an instruction about a picture or a text and an answer of some length, which it was made for: the prompt
    is compressed once, by one set of rows for all heads, and decoding evicts by place alone, without looking at
    attention.

    Not for: prompts in which one exact token matters, such as a number in a text: where the neighbours are folded into
    it, it is no longer what it was. Measure ``merge="evict"`` beside it.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        first: tokens at the start that are always kept (1 in all the paper's runs).
        last: tokens at the end of the prompt that are always kept.
        distance: rows at the end of the compressed prompt that decoding may evict.
        merge: what becomes of the rest of the prompt: the mean with the nearest kept row, nothing, or the mean with the
            kept row of the most similar key.
        statistic: the sum of a row's attention over queries, its mean, or its moving average.
        sets: one set of rows for each layer, for each head, or for the whole model.
        discard: while decoding, evict at the fixed point, the oldest rows, or the rows with the least attention.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(first=first, last=last)
    schedule = schedule_for("elastic_cache", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))
    each, mean = AttentionMass(reduce=statistic), AttentionMass(heads="mean", reduce=statistic)
    score = choose("elastic_cache", "sets", sets, {"layer": mean, "head": each, "shared": Shared(mean)})
    merges = {
        "mean": Fold(NearestPosition(first=first, last=last), Mean()),
        "evict": Drop(),
        "cluster": Fold(MostSimilar(), Mean()),
    }
    evicts = {
        "fixed": FixedPoint(distance=distance, first=first),
        "recent": Recency(),
        "frequency": each if sets == "head" else mean,
    }
    evict = choose("elastic_cache", "discard", discard, evicts)
    merge_by = choose("elastic_cache", "merge", merge, merges)
    return Policy(
        prefill=Pipeline(schedule=schedule, score=score, select=select, merge=merge_by),
        decode=Pipeline(schedule=schedule, score=evict, select=TopK(first=first)),
    )
