"""VL-Cache: what the text after the image looks at."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..allocators import BySparsity
from ..scorers import PostImageMass
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["vl_cache"]


def vl_cache(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    recent: float = 0.1,
) -> Policy:
    """Score rows by the queries after the last image, and give layers with dense attention more of them.

    Formula: ``s[h, j] = sum over queries i after the last image row of A[h, i, j]``; layer shares in proportion to the
    share of these queries' attention entries that reach 1% of their query's largest. Prompt only.

    Source: Tu et al., "VL-Cache: Sparsity and Modality-Aware KV Cache Compression for Vision-Language Model Inference
    Acceleration", ICLR 2025, arXiv 2410.23317, section 4.

    Good for: a question after an image: its own queries choose the rows, and layers share the budget by what they look
    at.

    Not for: a question before the image, which has no queries after it; long answers, since generated rows all stay;
    assisted decoding, since a layer waits until every layer has attended. It must be told which tokens are image
    (``inputs=``).

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        recent: share of the budget that goes to the most recent rows.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    return Policy(
        prefill=Pipeline(
            schedule=schedule_for("vl_cache", keep=keep, rows=rows, memory=memory),
            score=PostImageMass(),
            allocate=BySparsity(),
            select=TopK(recent=recent),
        )
    )
