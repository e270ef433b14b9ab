"""When a policy acts, and how many rows may stay."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import final

import numpy as np

from ._check import check_count, check_share, check_stage
from ._errors import PolicyError
from ._protocols import Bounded, Scheduler
from ._repr import constructor_repr
from ._step import Phase, Step
from ._types import Counts

__all__ = ["Every", "FixedRows", "KeepRatio", "MemoryBudget", "parse_bytes"]

MOST_ROWS = 2**32  # of a head: more than any memory holds, and a sum over all heads of a model stays an exact integer
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@final
@dataclass(frozen=True, slots=True)
class KeepRatio(Scheduler):
    """Hold a fraction of the tokens seen: ``round(keep * seen)`` rows, at least one, for each batch row.

    Args:
        keep: the share that stays, in (0, 1].
    """

    keep: float

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_share("KeepRatio", "keep", self.keep)

    def budget(self, step: Step, /) -> Counts:
        """int64 [B]; padding does not count as seen, so a padded batch row gets what it would get alone."""
        rows: Counts = np.maximum(np.rint(float(self.keep) * step.seen), 1).astype(np.int64)
        return rows


@final
@dataclass(frozen=True, slots=True)
class FixedRows(Scheduler, Bounded):
    """Hold at most a fixed number of rows per layer and head.

    Args:
        rows: at least 1; `sys.maxsize` or any other number that no request reaches keeps everything.
    """

    rows: int

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("FixedRows", "rows", self.rows, least=1)

    def budget(self, step: Step, /) -> int:
        """The constant."""
        return min(self.rows, MOST_ROWS)

    def limit(self, step: Step, /) -> int:
        """The constant."""
        return self.budget(step)


@final
@dataclass(frozen=True, slots=True)
class MemoryBudget(Scheduler, Bounded):
    """Hold as many rows as fit in a number of bytes, for the keys and values of the whole request.

    One row per layer and head is set aside for the token that arrives before another is evicted, so that the storage
    itself stays within the bytes. Where heads hold nearly, but not quite, the same number of rows, it may pad them to
    the fullest, by less than a seventh.

    Args:
        memory: bytes, as an int or as text: ``"64MiB"``, ``"0.5 GB"``.
    """

    memory: int | str

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        parse_bytes(self.memory, owner="MemoryBudget")

    def budget(self, step: Step, /) -> int:
        """Rows that fit.

        Raises:
            PolicyError: if not even one row fits; names the bytes that would be needed.
        """
        rows = parse_bytes(self.memory) // max(step.row_bytes, 1) - 1
        if rows < 1:
            raise PolicyError(
                f"MemoryBudget(memory={self.memory!r}): one row per layer and head takes {step.row_bytes} bytes for "
                f"this request and one more is needed for the incoming token; give at least {2 * step.row_bytes} bytes."
            )
        return min(rows, MOST_ROWS)

    def limit(self, step: Step, /) -> int:
        """The same number: it does not change within a request."""
        return self.budget(step)


@final
@dataclass(frozen=True, slots=True)
class Every(Scheduler):
    """Act on complete prompts, and while decoding only at every n-th token; between, rows gather above the budget.

    Tokens are counted from the first one decoded on: a further turn does not start the count anew.

    Args:
        steps: n, at least 1.
        schedule: what the budget is.
    """

    steps: int
    schedule: Scheduler

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_count("Every", "steps", self.steps, least=1)
        check_stage("Every", "schedule", self.schedule, Scheduler)

    def budget(self, step: Step, /) -> int | Counts | None:
        """That of the inner schedule, when its turn has come: at every n-th token decoded in the whole request."""
        decoded = int((step.seen - step.prompt).max(initial=0))
        if step.phase is Phase.DECODE and decoded % self.steps:
            return None
        return self.schedule.budget(step)


def parse_bytes(value: int | str, *, owner: str = "parse_bytes") -> int:
    """Bytes of ``1024``, ``"64MiB"`` or ``"1.5 GB"`` (KB, MB, GB decimal; KiB, MiB, GiB binary).

    Raises:
        PolicyError: if the value is not a positive size.
    """
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", value.upper())):
        bytes_ = float(match[1]) * _UNITS.get(match[2], 0)
        size = int(bytes_) if math.isfinite(bytes_) else 0
    if size <= 0:
        raise PolicyError(f'{owner}(memory={value!r}): memory is a positive number of bytes, or text like "64MiB".')
    return size
