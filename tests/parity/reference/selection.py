"""Which rows stay: the protected ones, then the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .common import IMAGE, TEXT, Head

__all__ = ["UndecidedError", "best", "check_decided", "keep_best", "stays"]


class UndecidedError(ArithmeticError):
    """The formula does not say which row stays, or only rounding would: there is nothing to compare with."""


def best(scores: Sequence[float], places: Sequence[int], count: int, *, exact: bool = True) -> list[int]:
    """The ``count`` places of the highest scores; ties go to the later.

    Raises:
        UndecidedError: if the last one that stays and the first one that leaves differ by no more than rounding does.
            Equal scores are a tie, unless they are not ``exact``: positive sums in no particular order.
    """
    order = sorted(places, key=lambda n: (scores[n], n), reverse=True)
    count = max(count, 0)
    if 0 < count < len(order):
        check_decided(scores[order[count - 1]], scores[order[count]], exact=exact)
    return order[:count]


def check_decided(kept: float, gone: float, *, exact: bool) -> None:
    """Raise an `UndecidedError` where rounding alone may put one score above another."""
    if kept == gone and (exact or not 0 < kept < math.inf):
        return
    if math.isclose(kept, gone, rel_tol=1e-13):
        raise UndecidedError(f"{kept} stays and {gone} leaves")


def stays(
    head: Head,
    scores: Sequence[float],
    quota: int,
    *,
    first: int = 0,
    last: int = 0,
    recent: float = 0.0,
    text: bool = False,
    exact: bool = True,
) -> list[int]:
    """Places that stay, in order: the first, the last, all text beside images; then the best of the others.

    At least ``last`` rows at the end are protected, and of ``floor(recent * quota)`` as many, from the end, as the
    first rows and the text leave room for in the quota.
    """
    end = max(last, min(math.floor(recent * quota), quota - first))
    text = text and any(row.segment == IMAGE for row in head)
    always = [n for n, row in enumerate(head) if n < first or n >= len(head) - last or (text and row.segment == TEXT)]
    late = [n for n in range(max(0, len(head) - end), len(head)) if n not in always]
    room = max(0, quota - len(always)) if text else len(late)
    protected = [*always, *late[len(late) - min(room, len(late)) :]]
    others = [n for n in range(len(head)) if n not in protected]
    return sorted([*protected, *best(scores, others, quota - len(protected), exact=exact)])


def keep_best(head: Head, scores: Sequence[float], quota: int, *, exact: bool = True) -> Head:
    """The ``quota`` rows of the highest scores."""
    return [head[n] for n in stays(head, scores, quota, exact=exact)]
