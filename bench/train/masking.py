"""Which tokens of a packed row see which. Apart from packing, which runs in processes that need no torch."""

from __future__ import annotations

import torch

from .packing import PROMPT

__all__ = ["mask"]


def mask(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores, [R, 1, N, N]: 0 where a token sees another, -inf elsewhere."""
    causal = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool, device=block.device).tril()
    seen = causal & ((block[:, None, :] == PROMPT) | (block[:, None, :] == block[:, :, None]))
    return torch.zeros((), dtype=dtype, device=block.device).masked_fill(~seen[:, None], float("-inf"))
