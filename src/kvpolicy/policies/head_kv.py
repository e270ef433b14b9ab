"""HeadKV: SnapKV with a measured budget for every head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from .._policy import Pipeline, Policy
from ..allocators import HeadTable
from ..scorers import Pooled, WindowMass
from ._budget import schedule_for

__all__ = ["head_kv"]


def head_kv(
    *,
    keep: float | None = None,
    rows: int | None = None,
    memory: int | str | None = None,
    table: Sequence[Sequence[float]],
    window: int = 32,
    kernel: int = 7,
) -> Policy:
    """SnapKV, with the rows of the whole model shared among all heads by a table that was measured once.

    Formula: scores as in SnapKV; head h of layer l gets ``table[l][h] / sum(table)`` of all rows, in integers with the
    exact total. Heads are ragged and so is the memory. Prompt only.

    Source: Fu et al., "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval and
    Reasoning", ICLR 2025, arXiv 2410.19258, section 3.

    Good for: a model that is served for long, whose heads were measured once on the task at hand: the table costs
    nothing when it is used.

    Not for: a model that nobody has measured: no table comes with the package, and a table says nothing about another
    model.

    Args:
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: or: rows per layer and head, on average.
        memory: or: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        table: a weight >= 0 for every layer and key/value head, ``table[layer][head]``.
        window: queries at the end of the prompt that vote.
        kernel: odd width of the pooling.

    Raises:
        PolicyError: unless exactly one of keep, rows and memory is given and in range.
    """
    schedule = schedule_for("head_kv", keep=keep, rows=rows, memory=memory)
    return Policy(
        prefill=Pipeline(
            schedule=schedule,
            score=Pooled(WindowMass(window=window), kernel=kernel),
            allocate=HeadTable(cast(tuple[tuple[float, ...], ...], table)),  # makes it one, or says what is wrong
        )
    )
