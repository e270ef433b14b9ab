"""A whole request through a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..._pass import Pass
from ..._plan import Plan
from ..._policy import Policy
from ..._protocols import Backend
from ..._session import Session
from ..._step import Step
from ..._types import CacheView
from .._numbers import Arr
from .._outcome import Outcome, Place, Record
from .._rotary import rotary
from ..requests import Stream
from .planned import Planned, in_numpy, on_host, table_outcome

__all__ = ["feed", "requested"]


def requested(
    policy: Policy, stream: Stream, ops: Backend, device: str | None, watch: Callable[[Planned], None] | None = None
) -> Outcome:
    """The tables after each pass of a request."""

    def listen(layer: int, view: CacheView, plan: Plan, step: Step) -> None:
        if watch is not None:
            watch(Planned(in_numpy(view, ops), on_host(plan, ops), stream.padding, when))

    session = Session(policy, ops, len(stream.keys), prompt_length=stream.prompt, listen=listen, rotate=rotary(ops))
    out: dict[Place, Record] = {}
    start = 0
    for when, length in enumerate(stream.passes):
        feed(session, stream, start, length, device)
        start += length
        if start < stream.prompt:
            continue  # a chunk: what the tables are then is nobody's business
        done = len(stream.passes) - when  # counted from the end: the same for a prompt that came in chunks
        for number in range(len(session)):
            view = in_numpy(session._layers[number].store.view(), ops)
            rows = table_outcome(view, stream.padding, when=-done)
            out |= {place: record for place, record in rows.items() if place.token >= 0}
    return _from_zero(out)


def feed(session: Session, stream: Stream, start: int, length: int, device: str | None) -> None:
    """One forward pass over all layers."""
    ops, stop = session.ops, start + length
    places = np.broadcast_to(np.arange(start, stop), (len(stream.padding), length)).copy()
    real = places >= stream.padding[:, None]

    def vectors(data: Arr) -> Any:
        return ops.from_host(data, dtype=stream.dtype, device=device)

    now = Pass(
        start=start,
        positions=ops.from_host(places, device=device),
        valid=ops.from_host(real, device=device),
        tokens=real.sum(-1),
        columns={"segment": ops.from_host(stream.segment[:, start:stop], device=device)},
    )
    for layer in range(len(session)):
        session.append(
            layer, vectors(stream.keys[layer][:, :, start:stop]), vectors(stream.values[layer][:, :, start:stop]), now
        )
        asked = session.turned(layer, vectors(stream.queries[layer][:, :, start:stop]), now)
        session.advance(layer, asked, stream.scale, now)


def _from_zero(out: Mapping[Place, Record]) -> Outcome:
    least = min((place.when for place in out), default=0)
    return {place._replace(when=place.when - least): record for place, record in out.items()}
