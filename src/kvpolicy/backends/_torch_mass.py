"""Attention mass in torch: what each row of a table received from the queries of a pass."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .._step import Step
from .._types import CacheView, Scores

__all__ = ["column_mass"]


def column_mass(
    view: CacheView,
    step: Step,
    chunk_elements: int,
    *,
    weights: Tensor | None,
    group: Literal["mean", "max"],
    above: float | None,
) -> Scores:
    """See `TorchBackend.attention_mass`, of attention that has not told what it paid.

    Rows of a whole pass stand at the end of the table in order, so a chunk only meets the rows that its last query can
    see; other queries, and a single one, may see rows anywhere.
    """
    batch, heads, rows = view.shape
    queries, sees, counted = step.queries, step.asked.sees, step.query_valid
    total = queries.shape[2]
    in_order = step.whole_pass and total > 1 and step.query_reach is None
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    keys = view.keys.to(dtype).transpose(-1, -2)
    queries = queries.reshape(batch, heads, queries.shape[1] // heads, total, queries.shape[-1])
    bias = _log_count(view, dtype) if step.count_bias else None
    sinks = None if step.sinks is None else step.sinks.to(dtype).reshape(1, heads, -1, 1, 1)
    room = torch.empty if total == 1 else torch.zeros  # what a single query pays needs no adding up
    mass = room(batch, heads, queries.shape[2], rows, dtype=dtype, device=queries.device)
    chunk = max(1, chunk_elements // max(1, batch * heads * queries.shape[2] * rows))
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        seen = rows - total + stop if in_order else rows
        asked = queries[..., start:stop, :].to(dtype) * step.scale
        # Query heads that share keys are laid side by side: broadcasting the keys over them would copy the keys.
        logits = (asked.flatten(2, 3) @ keys[..., :seen]).unflatten(2, asked.shape[2:4])
        if step.softcap is not None:
            logits.div_(step.softcap).tanh_().mul_(step.softcap)
        if bias is not None:
            logits += bias[:, :, None, None, :seen]
        hidden = _hidden(view, sees[:, start:stop], seen).unsqueeze(2)
        logits.masked_fill_(hidden, -torch.inf)
        shares = torch.softmax(logits, dim=-1)
        if sinks is not None:  # the rows keep exp(lse) / (exp(lse) + exp(sink)) of the whole
            shares *= torch.sigmoid(logits.logsumexp(-1, keepdim=True) - sinks)
        if above is not None:
            shares = (shares >= above * shares.amax(-1, keepdim=True)).to(dtype).masked_fill_(hidden, 0.0)
        # A query that sees nothing has NaN shares; it counts for nothing, like one on a padding token.
        silent = hidden.all(-1, keepdim=True) | ~counted[:, None, None, start:stop, None]
        shares.masked_fill_(silent, 0.0)
        if weights is not None:
            shares *= weights[:, None, None, start:stop, None].to(dtype)
        if total == 1:
            mass = shares.squeeze(-2)
        else:
            mass[..., :seen] += shares.sum(-2)
    return mass.mean(2) if group == "mean" else mass.amax(2)


def _hidden(view: CacheView, sees: Tensor, seen: int) -> Tensor:
    """bool [B, H, Q, seen]: rows that a query, which sees up to this arrival index, does not see."""
    later = view.positions[..., None, :seen] > sees[:, None, :, None]
    hidden: Tensor = later | ~view.valid[..., None, :seen]
    return hidden


def _log_count(view: CacheView, dtype: torch.dtype) -> Tensor:
    count: Tensor = view.columns["count"].data
    return count.to(dtype).clamp(min=torch.finfo(dtype).tiny).log()
