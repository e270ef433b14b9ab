"""One forward pass, as a caller tells a session of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ._types import Array, Counts

__all__ = ["Pass"]


@final
@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass over the whole model: what its layers share.

    Attributes:
        start: tokens (padding included) before this pass.
        positions: int64 [B, Q], arrival indices.
        valid: bool [B, Q]; False for padding.
        tokens: int64 [B] (numpy), valid tokens of this pass.
        columns: scalar columns [B, Q] known on arrival.
        reach: int64 [B, Q], the last arrival index that each token sees; None: its own, as under a causal mask.
        tentative: whether these are decoded tokens that `Session.crop` may take back, whatever the policy has done to
            them meanwhile. Where the policy acts while decoding, they come one a pass.
    """

    start: int
    positions: Array
    valid: Array
    tokens: Counts
    columns: Mapping[str, Array]
    reach: Array | None = None
    tentative: bool = False

    @property
    def length(self) -> int:
        """Q."""
        return int(self.positions.shape[-1])
