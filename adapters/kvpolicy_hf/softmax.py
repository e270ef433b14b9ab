"""What a model makes of the products of queries and keys; and attention for models of which sdpa cannot make it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Softmax"]

_ELEMENTS = 1 << 22  # of the logits held at once


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """How a layer's logits become shares.

    Attributes:
        scale: of the products of queries and keys.
        softcap: logits become ``softcap * tanh(logit / softcap)``; None: they stay.
        sinks: [Hq], for each query head a logit that takes its share and belongs to no row; None: there is none.
    """

    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether sdpa does the same."""
        return self.softcap is None and self.sinks is None

    def shares(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention of every query to every row, in float32 at least.

        Args:
            queries: [B, Hq, Q, D].
            keys: [B, H, S, D]; H divides Hq.
            mask: [B, 1 or H or Hq, Q, S]: bool, what each query sees; or added to the logits. None: it sees all.

        Returns:
            [B, Hq, Q, S].
        """
        heads, wide = keys.shape[1], torch.promote_types(queries.dtype, torch.float32)
        asked = queries.to(wide).unflatten(1, (heads, -1)) * self.scale
        # Query heads that share keys are laid side by side: broadcasting the keys over them would copy the keys.
        logits = (asked.flatten(2, 3) @ keys.to(wide).mT).unflatten(2, asked.shape[2:4])
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if mask is not None:
            mask = mask.unsqueeze(2) if mask.shape[1] in (1, heads) else mask.unflatten(1, (heads, -1))
            # A query that sees nothing, as on padding, must not become NaN: NaN times zero is NaN.
            nothing = torch.finfo(wide).min
            logits = logits.masked_fill(~mask, nothing) if mask.dtype == torch.bool else logits + mask
        shares = logits.softmax(-1)
        if self.sinks is not None:  # the rows keep exp(lse) / (exp(lse) + exp(sink)) of the whole
            sinks = self.sinks.to(wide).reshape(1, heads, -1, 1, 1)
            shares = shares * torch.sigmoid(logits.logsumexp(-1, keepdim=True) - sinks)
        joined: Tensor = shares.flatten(1, 2)
        return joined

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, is_causal: bool, dropout: float
    ) -> Tensor:
        """The output [B, Q, Hq, Dv], some queries at a time.

        Args:
            queries: [B, Hq, Q, D].
            keys: [B, H, S, D].
            values: [B, H, S, Dv].
            mask: as in `shares`.
            is_causal: without a mask, query i sees the rows up to i; False: all of them.
            dropout: share of the attention to drop.
        """
        parts = []
        for start, stop in _chunks(queries, keys):
            seen = None if mask is None else mask[:, :, start:stop]
            if seen is None and is_causal:
                places = torch.arange(keys.shape[2], device=keys.device)
                seen = (places <= places[start:stop, None])[None, None]
            shares = self.shares(queries[:, :, start:stop], keys, seen).to(values.dtype)
            shares = torch.nn.functional.dropout(shares, dropout)
            grouped = shares.unflatten(1, (values.shape[1], -1))
            parts.append((grouped.flatten(2, 3) @ values).unflatten(2, grouped.shape[2:4]).flatten(1, 2))
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _chunks(queries: Tensor, keys: Tensor) -> Iterator[tuple[int, int]]:
    batch, heads, total = queries.shape[:3]
    chunk = max(1, _ELEMENTS // max(1, batch * heads * keys.shape[2]))
    for start in range(0, total, chunk):
        yield start, min(start + chunk, total)
