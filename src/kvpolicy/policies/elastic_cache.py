"""Elastic Cache: the reference composition."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..mergers import Fold, Mean, NearestPosition
from ..scorers import AttentionMass, FixedPoint
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
) -> Policy:
    """Merge the prompt around its most attended rows, then evict at a fixed point while decoding.

    Formula: prefill keeps the top rows of ``s_j = sum_i mean_h A[h, i, j]``, one set for all heads of a layer, and
    replaces each of them by the mean of itself and the dropped rows nearest to it by position (the protected first and
    last rows stay as they are, as in the released code); decode removes row
    ``max(prompt_kept - distance, first)`` whenever there are more than ``round(keep * seen)``.

    Source: Liu et al., "Efficient Inference of Vision Instruction-Following Models with Elastic Cache", ECCV 2024,
    arXiv 2407.18121, sections 3.2 and 3.3.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        first: tokens at the start that are always kept (1 in all the paper's runs).
        last: tokens at the end of the prompt that are always kept.
        distance: rows at the end of the compressed prompt that decoding may evict.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(first=first, last=last)
    schedule = schedule_for("elastic_cache", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))
    return Policy(
        prefill=Pipeline(
            schedule=schedule,
            score=AttentionMass(heads="mean"),
            select=select,
            merge=Fold(NearestPosition(first=first, last=last), Mean()),
        ),
        decode=Pipeline(schedule=schedule, score=FixedPoint(distance=distance, first=first), select=TopK(first=first)),
    )
