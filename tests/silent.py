"""Proof that nothing was generated."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Silent"]


class Silent:
    """A streamer that fails as soon as a token is produced."""

    def __init__(self) -> None:
        self.pieces = 0

    def put(self, tokens: Tensor) -> None:
        self.pieces += 1  # the first is the prompt
        assert self.pieces == 1, "a token was produced"

    def end(self) -> None:
        pass
