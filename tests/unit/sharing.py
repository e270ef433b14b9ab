"""Processes that share the heads of a model, as threads: what each does between two meetings is its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import array_api_compat
import numpy as np
from driving import PassTrace, Request, Trace, drive

from kvpolicy import Heads, Policy

__all__ = ["Share", "drive_shared", "together"]

T = TypeVar("T")


@dataclass
class _Meeting:
    """Where all have to come before any goes on; who does not come fails the others."""

    parts: int
    barrier: threading.Barrier = field(init=False)
    brought: list[Any] = field(init=False)
    calls: int = 0

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.parts, timeout=20)
        self.brought = [None] * self.parts


@dataclass(frozen=True)
class Share(Heads):
    """The heads of one thread."""

    rank: int
    meeting: _Meeting

    @property
    def parts(self) -> int:
        return self.meeting.parts

    def all(self, data: Any, /) -> Any:
        self.meeting.brought[self.rank] = data
        if self.meeting.barrier.wait() == 0:
            self.meeting.calls += 1
        brought = list(self.meeting.brought)
        self.meeting.barrier.wait()
        assert {(tuple(one.shape), str(one.dtype), type(one)) for one in brought} == {
            (tuple(data.shape), str(data.dtype), type(data))
        }
        return array_api_compat.array_namespace(data).concat(brought, axis=1)

    def own(self, data: Any, /) -> Any:
        size = data.shape[1] // self.parts
        assert size * self.parts == data.shape[1]
        return data[:, self.rank * size : (self.rank + 1) * size]


def together(parts: int, work: Callable[[Share], T]) -> tuple[list[T], int]:
    """What each of the threads returned, in order, and how often they met; one that raises ends the wait of all."""
    meeting = _Meeting(parts)

    def run(rank: int) -> T:
        try:
            return work(Share(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(parts) as pool:
        futures = [pool.submit(run, rank) for rank in range(parts)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures], meeting.calls


def drive_shared(policy: Policy, request: Request, parts: int, **settings: Any) -> tuple[list[Trace], Trace, int]:
    """A request under threads that share the heads; then the same as one trace, and how often they met."""

    def run(share: Share) -> Trace:
        def own(data: Any) -> Any:
            return np.stack([share.own(layer) for layer in data])

        mine = replace(request, queries=own(request.queries), keys=own(request.keys), values=own(request.values))
        return drive(policy, mine, heads=share, **settings)

    traces, calls = together(parts, run)
    whole = Trace(traces[0].session)
    for passes in zip(*(trace.passes for trace in traces), strict=True):
        tables = [
            [[head for one in passes for head in one.tables[layer][b]] for b in range(len(passes[0].tables[layer]))]
            for layer in range(len(passes[0].tables))
        ]
        whole.passes.append(PassTrace(np.concatenate([one.outputs for one in passes], axis=2), tables))
    return traces, whole, calls
