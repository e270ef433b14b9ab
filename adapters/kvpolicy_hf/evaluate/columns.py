"""The columns of the results: one row for each sample under each arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

__all__ = ["COLUMNS", "frame_of"]

COLUMNS: Mapping[str, Any] = {
    "task": pl.String,
    "sample": pl.Int64,  # index within the task
    "group": pl.String,  # samples of one group are not independent
    "policy": pl.String,
    "keep": pl.Float64,  # the budget asked for; null where the policy has its own
    "quality": pl.Float64,  # the task's headline: correct, or the likelihood kept
    "correct": pl.Float64,
    "rouge": pl.Float64,  # ROUGE-L F1 against the full cache's answer
    "same": pl.Int64,  # tokens until the answer first differs from the full cache's
    "new_tokens": pl.Int64,
    "agreement": pl.Float64,  # share of forced places with the full cache's most likely token
    "nats": pl.Float64,  # of the right answer, forced
    "scored": pl.Int64,  # its tokens
    "mass": pl.Float64,  # share of full attention on rows that are still there
    "error": pl.Float64,  # relative error of the attention outputs
    "prompt_tokens": pl.Int64,
    "kv_bytes": pl.Int64,
    "full_kv_bytes": pl.Int64,
    "seconds": pl.Float64,  # of the batch, prompt included, divided by its samples
    "peak_bytes": pl.Int64,  # of the whole batch; null on a CPU
    "said": pl.String,
    "answer": pl.String,
}


def frame_of(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """The rows as a table, sorted by task and sample, arms in the order in which they came."""
    frame = pl.DataFrame([{name: row.get(name) for name in COLUMNS} for row in rows], schema=dict(COLUMNS))
    return frame.sort("task", "sample", maintain_order=True)
