"""D2O: layers by variance, merging past a moving threshold."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from .._protocols import Allocator
from ..allocators import ByVariance, LikePrompt
from ..mergers import EMAGate, Fold, MostSimilar, SimilaritySoftmax
from ..scorers import AttentionMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["d2o"]


def d2o(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    first: int = 4,
    recent: float = 0.5,
    beta: float = 0.7,
    exempt: tuple[int, ...] = (),
) -> Policy:
    """Give layers with spread attention more rows, evict as H2O, and merge what is similar enough to a kept key.

    Formula: layer shares ``softmax(-v)`` of the variance v of the prompt's column sums; a dropped row folds into the
    most similar kept key where the similarity reaches a threshold of its head: the mean of the best similarities at
    first, then ``tau <- beta * mean + (1 - beta) * tau``; weights ``e^{s_i}`` beside the anchor's own ``e``,
    normalised.

    Source: Wan et al., "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language
    Models", ICLR 2025, arXiv 2406.13035, section 4.

    Good for: layers that differ much in how spread their attention is, and text in which many keys are alike: only
    those merge.

    Not for: assisted decoding, since a layer waits until every layer has attended; one exact token among many that are
    alike, which merges with them.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        first: tokens at the start that are always kept.
        recent: share of the budget that goes to the most recent rows.
        beta: weight of the present in the moving threshold (0.7 in the paper, 0.5 in the released code).
        exempt: layers that keep all their rows, counted inside the total.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(first=first, recent=recent)
    schedule = schedule_for("d2o", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))

    def pipeline(allocate: Allocator) -> Pipeline:
        return Pipeline(
            schedule=schedule,
            score=AttentionMass(),
            allocate=allocate,
            select=select,
            merge=Fold(EMAGate(MostSimilar(), beta=beta), SimilaritySoftmax()),
        )

    return Policy(prefill=pipeline(ByVariance(exempt=exempt)), decode=pipeline(LikePrompt()))
