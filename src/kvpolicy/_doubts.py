"""Checks of values, whose answers are still on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from array_api_compat import device, to_device

from ._errors import PlanError
from ._namespace import namespace
from ._types import Array

__all__ = ["Doubts"]


@final
class Doubts:
    """What may be wrong; asked for all together, so that the device is waited for once."""

    def __init__(self) -> None:
        self._open: list[tuple[Array, Callable[[], PlanError]]] = []

    def add(self, wrong: Array, error: Callable[[], PlanError]) -> None:
        """To be raised, unless ``wrong`` (bool, no dimension) turns out to be False.

        ``error`` must not hold a table: it would be kept until the last layer has been run.
        """
        self._open.append((wrong, error))

    def settle(self) -> None:
        """Wait for the answers, and raise the first error there is."""
        doubts, self._open = self._open, []
        if not doubts:
            return
        xp, here = namespace(doubts[0][0]), device(doubts[0][0])  # layers may be on several devices
        if bool(xp.any(xp.stack([to_device(wrong, here) for wrong, _ in doubts]))):
            raise next(error() for wrong, error in doubts if bool(wrong))
