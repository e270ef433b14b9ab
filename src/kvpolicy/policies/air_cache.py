"""AirCache: what the words that matter look at."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..allocators import ByStrengthAndSkew
from ..scorers import EliteMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["air_cache"]


def air_cache(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    window: int = 64,
    threshold: float = 0.1,
) -> Policy:
    """Keep all text, and the image rows that the most important text queries attend to.

    Formula: ``s[h, j] = sum over elite queries i of A[h, i, j]``, elite being the text queries to which the last query
    pays at least ``threshold`` of the most it pays to any; layer shares from the strength and skewness of the image
    rows' scores. Prompt only. Text that alone exceeds the budget stays, and the report says so.

    Source: Huang et al., "AirCache: Activating Inter-modal Relevancy KV Cache Compression for Efficient Large
    Vision-Language Model Inference", ICCV 2025, arXiv 2503.23956, section 3.

    Good for: questions about images with much text around them: the few words that matter choose the image rows, and
    all text stays.

    Not for: prompts of which most is text, where little is saved; long answers, since generated rows all stay; assisted
    decoding, since a layer waits until every layer has attended. It must be told which tokens are image (``inputs=``).

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        window: queries at the end of the prompt among which the elite is chosen.
        threshold: share of the largest attention that makes a query elite.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    return Policy(
        prefill=Pipeline(
            schedule=schedule_for("air_cache", keep=keep, rows=rows, memory=memory),
            score=EliteMass(window=window, threshold=threshold),
            allocate=ByStrengthAndSkew(),
            select=TopK(text=True),
        )
    )
