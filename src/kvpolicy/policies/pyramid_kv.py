"""PyramidKV: SnapKV with budgets that fall from layer to layer."""

from __future__ import annotations

from .._policy import Pipeline, Policy
from ..allocators import Pyramid
from ..scorers import Pooled, WindowMass
from ._budget import schedule_for

__all__ = ["pyramid_kv"]


def pyramid_kv(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    window: int = 8,
    kernel: int = 7,
    beta: float = 20.0,
) -> Policy:
    """SnapKV, with more rows for the first layers and fewer for the last.

    Formula: scores as in SnapKV; every layer keeps the window, and of the other ``r = k - window`` rows a layer the
    last layer gets ``r / beta``, the first ``2 r - r / beta``, linear between, in integers with the exact total. Prompt
    only.

    Source: Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", arXiv
    2406.02069, section 3.2.

    Good for: what SnapKV is good for, where attention spreads in early layers and gathers on few tokens in late ones,
    as the paper finds in language models.

    Not for: models whose late layers need many rows, and the cases that SnapKV is not for. At small budgets the last
    layers keep little beyond the window.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        window: queries at the end of the prompt that vote.
        kernel: odd width of the pooling.
        beta: steepness; 1 gives every layer the same.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    schedule = schedule_for("pyramid_kv", keep=keep, rows=rows, memory=memory)
    return Policy(
        prefill=Pipeline(
            schedule=schedule,
            score=Pooled(WindowMass(window=window), kernel=kernel),
            allocate=Pyramid(beta=beta, least=window),
        )
    )
