"""An archive follows its batch rows, and a new request begins with an empty one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from custom_stages import Recall, every, recalling
from driving import Request, feed, make_request, same_tables, to
from ledger import run, session_of

from kvpolicy import CacheView, KeepRatio, Pipeline, Policy, Recency, Session, Step, backend_by_name

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])


@BOTH
def test_beams_take_their_archive_along(backend: str) -> None:
    request = make_request(layers=2, batch=3, prompt=12, steps=5, padding=(0, 3, 7))
    stage = recalling(every(3), 4)
    policy, index = Policy(prefill=stage, decode=stage), [2, 0, 0, 1]
    arrays = (data[:, index] for data in (request.queries, request.keys, request.values))
    chosen = Request(*arrays, request.prompt, request.scale, tuple(request.padding[b] for b in index))
    session, ledger = session_of(policy, backend, 2)
    due = Session(policy, backend_by_name(backend), 2)
    for start, length in ((0, 12), (12, 1)):
        feed(session, request, start, length)
        feed(due, chosen, start, length)
    session.select_batch(to(backend, np.array(index)))
    for layer, state in enumerate(session._layers):
        assert state.archive is not None
        ledger.note(layer, state.archive.view())
    for start in (13, 14, 15):
        same_tables(feed(session, chosen, start, 1), feed(due, chosen, start, 1), tolerance=1e-12)
        ledger.check(chosen, start + 1)


@BOTH
def test_an_emptied_archive_follows_its_batch(backend: str) -> None:
    request = make_request(batch=2, prompt=8, steps=4)
    everything: Callable[[CacheView, Step], Any] = lambda archive, step: archive.valid  # noqa: E731
    schedule = KeepRatio(1.0)
    decode = Pipeline(schedule=schedule, score=Recency(), recall=Recall(everything))
    policy = Policy(prefill=recalling(Recall(everything), 3, score=Recency()), decode=decode)
    session = Session(policy, backend_by_name(backend), 1)
    feed(session, request, 0, 8)
    feed(session, request, 8, 1)
    assert session._layers[0].archived.tolist() == [[0, 0]] * 2
    session.select_batch(to(backend, np.array([0])))
    feed(session, request.alone(0), 9, 3)  # a second turn, brought down to three rows again
    assert session._layers[0].archived.tolist() == [[9, 9]]


@BOTH
def test_a_new_request_begins_with_an_empty_archive(backend: str) -> None:
    request, other = make_request(batch=2, prompt=12, steps=3), make_request(seed=3, heads=3, prompt=7, steps=3)
    stage = recalling(every(2), 4)
    policy = Policy(prefill=stage, decode=stage)
    session, _ = run(policy, request, backend)
    session.clear()
    report = session.report()
    assert (report.archive_bytes, report.recalled, report.evicted) == (0, 0, 0)
    fresh = Session(policy, backend_by_name(backend), 1)
    for start, length in ((0, 7), (7, 1), (8, 1)):
        same_tables(feed(session, other, start, length), feed(fresh, other, start, length))
    assert session.report() == fresh.report()
