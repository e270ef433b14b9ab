"""Attention in float64, from the formula: what a replay is measured with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["output", "shares"]


def shares(queries: Tensor, keys: Tensor, scale: float, *, bias: Tensor | None = None) -> Tensor:
    """``softmax(scale * q . k + bias)`` of every query over every row, float64 [B, H, G, Q, S].

    Args:
        queries: [B, Hq, Q, D]; each G of the Hq = H * G heads share a key/value head.
        keys: [B, H, S, D].
        scale: the softmax scale.
        bias: float64, broadcasts to [B, H, G, Q, S]; -inf hides a row.
    """
    grouped = queries.double().unflatten(1, (keys.shape[1], -1))
    logits = scale * grouped @ keys.double()[:, :, None].transpose(-1, -2)
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)


def output(shares: Tensor, values: Tensor) -> Tensor:
    """The attention output, float64 [B, H, G, Q, Dv]."""
    return shares @ values.double()[:, :, None]
