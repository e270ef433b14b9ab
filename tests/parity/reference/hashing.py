"""Numbers in [0, 1) that depend on nothing but a seed, a layer and a position."""

from __future__ import annotations

from .common import Inputs, Now, Outcome, budget, simulate
from .selection import keep_best

__all__ = ["noise", "random"]


def noise(seed: int, layer: int, position: int) -> float:
    """A hash of three integers, as a fraction of 2^31; nothing in it exceeds 2^62."""
    x = (seed * 2654435761 + layer * 40503 + position * 69069 + 12345) % 2**31
    for _ in range(3):
        x ^= x >> 15
        x = (x * 739982445) % 2**31
        x ^= x >> 12
    return x / 2**31


def random(inputs: Inputs, *, keep: float | None = None, rows: int | None = None, seed: int = 0) -> list[Outcome]:
    """The rows of the largest numbers, the same for all heads of a layer."""

    def act(now: Now) -> None:
        quota = budget(now.seen, keep, rows)
        for layer, heads in enumerate(now.layers):
            for h, head in enumerate(heads):
                heads[h] = keep_best(head, [noise(seed, layer, row.position) for row in head], quota)

    return simulate(inputs, act)
