"""What a stage or a request gave, row by row, and how two of those are compared.

Everything that a component can answer is written down in one form, an `Outcome`: for each place (layer, batch row,
head, token) a few named numbers. Where a table has another order of slots, other heads, more padding or another batch,
the places are renamed and the numbers must be the same; so every law about such a change is one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

__all__ = ["BrokenLawError", "Outcome", "Place", "Record", "compare", "describe", "fail"]

Record: TypeAlias = Mapping[str, Any]  # named numbers and vectors of one place


class Place(NamedTuple):
    """Where something is; -1: everywhere along that axis.

    Attributes:
        when: which pass of a request; first, so that the earliest difference is the one that is told.
        layer: which layer.
        batch_row: which row of the batch.
        head: which key/value head.
        token: which of a batch row's own tokens, from 0.
    """

    when: int = -1
    layer: int = -1
    batch_row: int = -1
    head: int = -1
    token: int = -1


Outcome: TypeAlias = Mapping[Place, Record]


class BrokenLawError(AssertionError):
    """A law does not hold.

    Attributes:
        place: where: layer, batch row, head, token and pass.
        detail: what was found there and what is due.
    """

    def __init__(self, place: Place, detail: str) -> None:
        self.place, self.detail = place, detail
        super().__init__(f"{describe(place)}: {detail}" if describe(place) else detail)


def describe(place: Place) -> str:
    """``layer 0, batch row 1, head 0, token 3``; what does not apply is left out."""
    names = (("pass", place.when), ("layer", place.layer), ("batch row", place.batch_row), ("head", place.head))
    return ", ".join(f"{name} {number}" for name, number in (*names, ("token", place.token)) if number >= 0)


def fail(place: Place, detail: str) -> NoReturn:
    """Raise `BrokenLawError`."""
    raise BrokenLawError(place, detail)


def compare(got: Outcome, due: Outcome, *, what: str, tolerance: float = 0.0) -> None:
    """Raise `BrokenLawError` at the first place where two outcomes differ.

    Args:
        got: one.
        due: the other, taken to be right.
        what: what ``due`` is, such as "the same row alone"; ends the sentence "due is ..., as in".
        tolerance: how far numbers may be apart, absolutely and relative to the larger; 0: bit by bit.
    """
    for place in sorted({*got, *due}):
        if place not in due:
            fail(place, f"there is {_shown(got[place])}; in {what} there is nothing.")
        if place not in got:
            fail(place, f"there is nothing; in {what} there is {_shown(due[place])}.")
        for name in (*due[place], *(name for name in got[place] if name not in due[place])):
            mine, yours = got[place].get(name), due[place].get(name)
            if not _alike(mine, yours, tolerance):
                fail(place, f"{name} is {_number(mine)}; in {what} it is {_number(yours)}.")


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    mine, yours = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if mine.shape != yours.shape:
        return False
    if np.array_equal(mine, yours, equal_nan=True):
        return True
    if tolerance == 0 or not (np.isfinite(mine) == np.isfinite(yours)).all():
        return False
    finite = np.isfinite(mine)
    off = np.abs(mine[finite] - yours[finite]) > tolerance * (1 + np.abs(yours[finite]))
    return bool(np.array_equal(mine[~finite], yours[~finite], equal_nan=True) and not off.any())


def _shown(record: Record) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in record.items()) or "a row"


def _number(value: Any) -> str:
    if value is None:
        return "missing"
    numbers = np.asarray(value, np.float64)
    if numbers.ndim == 0:
        return f"{float(numbers):.9g}"
    return "[" + ", ".join(f"{number:.9g}" for number in numbers.ravel().tolist()) + "]"
