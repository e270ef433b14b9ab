"""LOOK-M: text first, image rows merge."""

from __future__ import annotations

from typing import Literal

from .._check import choose
from .._policy import Pipeline, Policy
from ..mergers import Fold, Mean, MostSimilar, Pivotal, SimilarityWeighted
from ..scorers import AttentionMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["look_m"]


def look_m(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    recent: float = 0.5,
    merge: Literal["pivotal", "average", "weighted"] = "pivotal",
) -> Policy:
    """Keep all text and the recent rows, let image rows compete, and merge what goes into the most similar key.

    Formula: ``s[h, j] = sum_i A[h, i, j]``; each dropped row goes to the kept row c of highest cosine similarity, and
    with m rows going there ``K_c' = (K_c + sum (K_i + K_c) / 2) / (1 + m)`` (pivotal), ``(K_c + sum K_i) / (1 + m)``
    (average) or ``(K_c + sum s_i K_i) / (1 + m)`` (weighted, whose weights do not sum to one); the same for V. Prompt
    only. Text that alone exceeds the budget stays, and the report says so.

    Source: Wan et al., "LOOK-M: Look-Once Optimization in KV Cache for Efficient Multimodal Long-Context Inference",
    EMNLP 2024 Findings, arXiv 2406.18139, sections 3.2 and 3.3.

    Good for: prompts with several images and text that must stay whole: images make room for it, and what leaves an
    image is merged into what stays.

    Not for: prompts of text alone, in which no image makes room, with a question that should choose the rows; long
    answers, since generated rows all stay. It must be told which tokens are image (``inputs=``).

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        recent: share of the budget that goes to the most recent rows (the paper's two halves: 0.1 and 0.1 of T).
        merge: which of the paper's three.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    schedule = schedule_for("look_m", keep=keep, rows=rows, memory=memory)
    weighers = {"pivotal": Pivotal(), "average": Mean(), "weighted": SimilarityWeighted()}
    return Policy(
        prefill=Pipeline(
            schedule=schedule,
            score=AttentionMass(),
            select=TopK(recent=recent, text=True),
            merge=Fold(MostSimilar(), choose("look_m", "merge", merge, weighers)),
        )
    )
