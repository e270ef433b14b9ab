"""Expected Attention: what future queries will look at."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..scorers import ExpectedAttention
from ..selectors import TopK
from ._budget import schedule_for

__all__ = ["expected_attention"]


def expected_attention(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    first: int = 4,
    window: int = 128,
    future: int = 512,
) -> Policy:
    """Keep the rows that queries like the recent ones, asked from future positions, can be expected to attend to.

    Formula: ``s_j = softmax_j(E exp(q . k_j * scale)) * ||v_j||`` for Gaussian queries with the mean and covariance of
    the recent ones before their rotary embedding, turned to the mean of the next ``future`` positions. Prompt only.

    Source: Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
    Distribution", arXiv 2510.00636, section 3.

    Good for: prompts that are compressed before the question is known, such as a document for several requests: it asks
    what queries of the same kind will look at.

    Not for: models without plain rotary positions, which are refused; a question at the end that is unlike the text
    before it; long answers, since generated rows all stay.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        first: tokens at the start that are always kept.
        window: recent queries whose statistics are taken.
        future: positions ahead that are averaged over.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    select = TopK(first=first)
    schedule = schedule_for("expected_attention", keep=keep, rows=rows, memory=memory, floor=max(select.floor, 1))
    score = ExpectedAttention(window=window, future=future)
    return Policy(prefill=Pipeline(schedule=schedule, score=score, select=select))
