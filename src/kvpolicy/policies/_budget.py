"""The one choice that every recipe offers: how much may stay."""

from __future__ import annotations

from .._check import check_count, check_share
from .._errors import PolicyError
from .._protocols import Scheduler
from ..schedulers import FixedRows, KeepRatio, MemoryBudget, parse_bytes

__all__ = ["schedule_for"]


def schedule_for(
    recipe: str, *, keep: float | None, rows: int | None, memory: int | str | None, floor: int = 1
) -> Scheduler:
    """The scheduler for exactly one of ``keep``, ``rows`` and ``memory``.

    Args:
        recipe: its name, for errors: whoever calls it need not know the scheduler.
        keep: fraction of the tokens seen that stays, in (0, 1].
        rows: rows per layer and head.
        memory: bytes for the keys and values of the whole request, or text such as ``"64MiB"``.
        floor: rows that the recipe protects; a smaller ``rows`` is refused.

    Raises:
        PolicyError: if none or several are given, or the one given is out of range.
    """
    given = {name: value for name, value in (("keep", keep), ("rows", rows), ("memory", memory)) if value is not None}
    if len(given) != 1:
        got = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none"
        raise PolicyError(
            f"{recipe}() takes exactly one of keep=, rows= and memory=; got {got}. Hint: {recipe}(keep=0.2)."
        )
    if keep is not None:
        check_share(recipe, "keep", keep)
        return KeepRatio(keep)
    if memory is not None:
        parse_bytes(memory, owner=recipe)
        return MemoryBudget(memory)
    assert rows is not None
    check_count(recipe, "rows", rows, least=1)
    if rows < floor:
        raise PolicyError(f"{recipe}(rows={rows}): {floor} rows are protected, so rows must be at least {floor}.")
    return FixedRows(rows)
