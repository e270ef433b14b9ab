"""Time on the device's own clock, in milliseconds, and the peak of its memory, in bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any, TypeVar

import torch

__all__ = ["Peak", "Stamps", "Times", "timed"]

T = TypeVar("T")

WARM_UPS = 3
CYCLES_PER_MS = 2_000_000  # of an H200 at its highest clock: a wait of so many cycles is at least a millisecond


@dataclass(frozen=True)
class Times:
    """Of calls that were timed one by one, in milliseconds."""

    median: float
    least: float
    most: float
    calls: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Times:
        """Their median and spread."""
        return cls(statistics.median(times), min(times), max(times), len(times))


class Stamps:
    """Points in time: on the device's stream, where work ends, without waiting for it; on a CPU, by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._points: list[Any] = []

    def stamp(self) -> None:
        """Now."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._points.append(event)
        else:
            self._points.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Milliseconds from each stamp to the next; waits for the device."""
        if not self._cuda:
            return [1000 * (later - sooner) for sooner, later in pairwise(self._points)]
        torch.cuda.synchronize()
        return [sooner.elapsed_time(later) for sooner, later in pairwise(self._points)]


class Peak:
    """The most memory of a GPU that a block holds, in bytes; 0 on a CPU.

    Args:
        device: where it runs.
        beyond: bytes that do not count; default: what is held when the block begins.
    """

    def __init__(self, device: torch.device, beyond: int | None = None) -> None:
        self._cuda, self._beyond = device.type == "cuda", beyond
        self.bytes = 0

    def __enter__(self) -> Peak:
        if self._cuda:
            torch.cuda.synchronize()
            self._beyond = torch.cuda.memory_allocated() if self._beyond is None else self._beyond
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self.bytes = torch.cuda.max_memory_allocated() - (self._beyond or 0)


def timed(
    run: Callable[[T], object],
    buffers: Sequence[T],
    device: torch.device,
    *,
    seconds: float = 0.3,
    fewest: int = 5,
    most: int = 50,
    warm_ups: int = WARM_UPS,
    queued: bool = False,
) -> Times:
    """Single calls over rotating buffers, about ``seconds`` of them, after some that do not count.

    Args:
        run: what is timed.
        buffers: what it is called with, in turns. Where they are larger than the device's cache together, no call finds
            its input there.
        device: where it runs.
        seconds: how long to go on, between ``fewest`` and ``most`` calls.
        fewest: calls at least.
        most: calls at most.
        warm_ups: calls before these.
        queued: let the device wait until the host has launched a whole call, so that the time is the device's alone.
            Otherwise a call that the host launches more slowly than the device works takes the host's time.
    """
    turn = cycle(buffers)

    def once(wait: float = 0.0) -> float:
        buffer, stamps = next(turn), Stamps(device)
        if wait and device.type == "cuda":
            torch.cuda._sleep(int(wait * CYCLES_PER_MS))
        stamps.stamp()
        run(buffer)
        stamps.stamp()
        return stamps.gaps()[0]

    warm = [once() for _ in range(warm_ups)]
    wait = min(warm) * 1.5 if queued else 0.0
    calls = max(fewest, min(most, int(1000 * seconds / max(warm[-1], 1e-3))))
    return Times.of([once(wait) for _ in range(calls)])
