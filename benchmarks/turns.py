"""Processes that share a device take turns: one has it, and lets the others have it while it only compiles.

So what compiles for minutes on the host can be measured side by side, and yet nothing runs beside what is timed.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

__all__ = ["aside", "join", "leave"]

_held: list[TextIO] = []  # the lock of this process, if it takes turns at all


def join(path: Path) -> None:
    """Wait for the device. All processes that name the same file take turns."""
    _held.append(path.open("a", encoding="utf-8"))
    fcntl.flock(_held[-1], fcntl.LOCK_EX)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Let others have the device for as long as this lasts."""
    _done()
    for lock in _held:
        fcntl.flock(lock, fcntl.LOCK_UN)
    try:
        yield
    finally:
        _done()
        for lock in _held:
            fcntl.flock(lock, fcntl.LOCK_EX)


def leave() -> None:
    """For good."""
    while _held:
        _held.pop().close()


def _done() -> None:
    """Nothing of this process is under way on the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
