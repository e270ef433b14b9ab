"""What one query pays to each row."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from ..._step import Step
from ..._types import CacheView
from .rows import valid_rows

__all__ = ["attention", "sees"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def sees(view: CacheView, step: Step, b: int, h: int, i: int, n: int) -> bool:
    """Whether query ``i`` may see row ``n``."""
    last = step.query_positions if step.query_reach is None else step.query_reach
    return bool(view.valid[b, h, n] and view.positions[b, h, n] <= last[b, i])


def attention(view: CacheView, step: Step, b: int, hq: int, i: int) -> _Array:
    """What query ``i`` of query head ``hq`` pays to each row of its key/value head; zeros if it sees none."""
    h = hq // (step.queries.shape[1] // view.shape[1])
    paid = np.zeros(view.shape[2])
    query = np.asarray(step.queries[b, hq, i], dtype=np.float64)
    logits: dict[int, float] = {}
    for n in valid_rows(view, b, h):
        if sees(view, step, b, h, i, n):
            logits[n] = step.scale * float(query @ np.asarray(view.keys[b, h, n], dtype=np.float64))
            if step.softcap is not None:
                logits[n] = step.softcap * math.tanh(logits[n] / step.softcap)
            if step.count_bias:
                logits[n] += math.log(view.column("count", needed_by="attention_mass")[b, h, n])
    if logits:
        rivals = [] if step.sinks is None else [float(step.sinks[hq])]  # they take their share and pay no row
        top = max([*logits.values(), *rivals])
        total = sum(math.exp(logit - top) for logit in [*logits.values(), *rivals])
        for n, logit in logits.items():
            paid[n] = math.exp(logit - top) / total
    return paid
