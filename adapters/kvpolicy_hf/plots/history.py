"""What became of the tokens of one request: plain numpy, which nothing changes any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import PlotError

__all__ = ["Change", "Fate", "Floats", "History", "Ints"]

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What one plan did to the rows of one layer.

    Attributes:
        seen: tokens seen when it was made.
        back: int64 [N, 2], rows that had returned from the archive before it: (head, token).
        left: int64 [N, 3], rows that left: (head, token, the token whose row it folds into, or -1).
    """

    seen: int
    back: Ints
    left: Ints

    def apply(self, holder: Ints) -> None:
        """Bring ``holder`` up to date, see `Fate`; a row that is gone is ``-2 - token``, and takes along what it holds.

        A token is held by one row at most, so that a row which leaves hands over everything at once.
        """
        for head, token in self.back.tolist():
            mine = holder[head]
            mine[mine == -2 - token] = token
        for head in np.unique(self.left[:, 0]).tolist():
            _, tokens, into = self.left[self.left[:, 0] == head].T
            moved = np.arange(holder.shape[1])
            moved[tokens] = np.where(into >= 0, into, -2 - tokens)
            mine = holder[head]
            mine[mine >= 0] = moved[mine[mine >= 0]]


@dataclass(frozen=True, slots=True, eq=False)
class Fate:
    """Where each of T tokens is, in one layer and at one moment.

    Attributes:
        holder: int64 [H, T], the token whose row holds it: itself where it is kept, another where it was merged, -1
            where nothing is left of it. Where a row folds into several, the one with the largest weight.
    """

    holder: Ints

    @classmethod
    def everything(cls, tokens: int, heads: int = 1) -> Fate:
        """All are kept."""
        return cls(np.tile(np.arange(tokens), (heads, 1)))

    @property
    def own(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """bool [H, T]: its own row is in the table."""
        return np.asarray(self.holder == np.arange(self.holder.shape[1]))

    @property
    def differs(self) -> bool:
        """Whether some heads keep a row that others do not."""
        return bool((self.own != self.own[:1]).any())

    @property
    def kept(self) -> Floats:
        """float64 [T]: the share of heads in which its row is in the table."""
        return np.asarray(self.own.mean(axis=0))

    @property
    def merged(self) -> Floats:
        """float64 [T]: the share of heads in which it is part of another token's row."""
        return np.asarray(((self.holder >= 0) & ~self.own).mean(axis=0))

    @property
    def into(self) -> Ints:
        """int64 [T]: the other token whose row holds it in most heads (of several, in the first head); -1 for none."""
        others = np.where(self.own, -1, self.holder)
        votes = np.array([(others == mine).sum(axis=0) for mine in others]) * (others >= 0)
        return np.asarray(np.take_along_axis(others, votes.argmax(axis=0)[None], axis=0)[0])


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """One batch row of one request. Tokens are counted as if the row were alone: without padding.

    Attributes:
        tokens: T, tokens seen.
        prompt: how many of them were the prompt when the first plan was made; None if there was no plan.
        heads: key/value heads of each layer; 1 where no plan told how many there are, and all do alike.
        segments: int64 [T], `kvpolicy.TEXT`, `kvpolicy.IMAGE` and so on; text where no table had the column.
        changes: for each layer under the policy the plans that changed something, in order.
    """

    tokens: int
    prompt: int | None
    heads: tuple[int, ...]
    segments: Ints
    changes: tuple[tuple[Change, ...], ...]

    @property
    def layers(self) -> int:
        """Layers under the policy."""
        return len(self.changes)

    def moment(self, after: int | None) -> int:
        """``after``, or all tokens if it is None.

        Raises:
            PlotError: if so many tokens were never seen.
        """
        if after is None:
            return self.tokens
        if type(after) is not int or not 1 <= after <= self.tokens:
            raise PlotError(f"after={after!r}: {self.tokens} tokens were seen, so it must be in 1 .. {self.tokens}.")
        return after

    def number(self, layer: int) -> int:
        """``layer``.

        Raises:
            PlotError: if there is no such layer.
        """
        if type(layer) is not int or not 0 <= layer < self.layers:
            raise PlotError(f"layer={layer!r}: {self.layers} layers are under the policy, 0 .. {self.layers - 1}.")
        return layer

    def fate(self, layer: int, *, after: int | None = None) -> Fate:
        """What the layer holds when so many tokens were seen and their plan was carried out; None: at the end.

        Raises:
            PlotError: if there is no such layer, or if so many tokens were never seen.
        """
        end = self.moment(after)
        holder = Fate.everything(end, self.heads[self.number(layer)]).holder
        for change in self.changes[layer]:
            if change.seen <= end:
                change.apply(holder)
        return Fate(np.maximum(holder, -1))

    def rows(self, *, after: int | None = None) -> Floats:
        """float64 [L, H]: rows of each head when so many tokens were seen; NaN where a layer has fewer heads.

        Raises:
            PlotError: if so many tokens were never seen.
        """
        made = np.full((self.layers, max(self.heads)), np.nan)
        for layer, heads in enumerate(self.heads):
            made[layer, :heads] = self.fate(layer, after=after).own.sum(axis=1)
        return made
