"""What may happen to a request, as values that print as their own constructor calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from .._check import check_count
from .._errors import PolicyError
from .._repr import constructor_repr

__all__ = ["Crop", "Decode", "Op", "Prefill", "Reorder", "Reset", "Turn", "passes_of"]


@final
@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt.

    Args:
        tokens: its length, padding included.
        chunks: tokens of each pass, which add up to it; empty: one pass.
    """

    tokens: int
    chunks: tuple[int, ...] = ()

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Prefill", "tokens", self.tokens, least=1)
        for chunk in self.chunks:
            check_count("Prefill", "chunks", chunk, least=1)
        if self.chunks and sum(self.chunks) != self.tokens:
            raise PolicyError(f"Prefill(chunks={self.chunks}): the chunks must add up to {self.tokens} tokens.")


@final
@dataclass(frozen=True, slots=True)
class Turn:
    """A further turn in one pass.

    Args:
        tokens: of the turn.
    """

    tokens: int

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Turn", "tokens", self.tokens, least=1)


@final
@dataclass(frozen=True, slots=True)
class Decode:
    """Passes of one token.

    Args:
        steps: how many.
    """

    steps: int = 1

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Decode", "steps", self.steps, least=1)


@final
@dataclass(frozen=True, slots=True)
class Reorder:
    """Batch rows in another order, as beam search has it.

    Args:
        index: which row comes to each place, repeats allowed; numbers are taken modulo the batch rows.
    """

    index: tuple[int, ...]

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        for number in self.index or (-1,):
            check_count("Reorder", "index", number)


@final
@dataclass(frozen=True, slots=True)
class Crop:
    """Take the last tokens back: done exactly, or refused and nothing changed.

    Args:
        tokens: how many.
    """

    tokens: int = 1

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Crop", "tokens", self.tokens)


@final
@dataclass(frozen=True, slots=True)
class Reset:
    """A new request in the same session."""

    __repr__ = constructor_repr


Op: TypeAlias = Prefill | Turn | Decode | Reorder | Crop | Reset


def passes_of(op: Prefill | Turn | Decode) -> Sequence[int]:
    """Tokens of each pass."""
    if isinstance(op, Decode):
        return (1,) * op.steps
    return (op.chunks if isinstance(op, Prefill) else ()) or (op.tokens,)
