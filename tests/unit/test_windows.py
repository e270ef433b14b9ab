"""The latest queries of a request, however it came: in chunks, token by token, padded left, right or in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from custom_stages import Watch, Wide
from driving import Request, drive, feed, make_request, requests, same_tables, splits, to
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import FixedRows, Pass, Phase, Pipeline, Policy, Queries, Recency, Session, Step, backend_by_name

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])
BACKENDS = st.sampled_from(["numpy", "torch"])


def run(session: Session, request: Request, valid: Any, lengths: tuple[int, ...]) -> None:
    """These passes over tokens of which any may be padding."""
    backend, start = session.ops.name, 0
    for length in lengths:
        now = np.s_[start : start + length]
        positions = np.broadcast_to(np.arange(start, start + length), (len(valid), length))
        real = valid[:, now]
        step = Pass(start, to(backend, positions), to(backend, real), real.sum(axis=1), {})
        for layer in range(len(session)):
            keys, values, queries = (
                to(backend, data[layer][:, :, now]) for data in (request.keys, request.values, request.queries)
            )
            session.append(layer, keys, values, step)
            session.advance(layer, queries, request.scale, step)
        start += length


def latest(request: Request, valid: Any, layer: int, upto: int, window: int) -> list[Any]:
    """By the definition: the last ``window`` real tokens before ``upto``, as positions and queries."""
    out = []
    for b, real in enumerate(valid):
        last = np.flatnonzero(real[:upto])[-window:] if window else []
        out.append([(int(p), request.queries[layer, b, :, p].tolist()) for p in last])
    return out


def watched(window: int, layers: int, *phases: str) -> tuple[Policy, Watch]:
    watch = Watch(window, layers)
    return Policy(**dict.fromkeys(phases, Pipeline(schedule=watch, score=watch))), watch


@given(st.data(), BACKENDS, st.integers(1, 12))
def test_a_prompt_in_chunks_has_the_window_of_the_whole(data: st.DataObject, backend: str, window: int) -> None:
    request = data.draw(requests(max_batch=3, max_prompt=16, max_steps=0))
    prompt, layers, batch = request.prompt, *request.keys.shape[:2]
    valid = np.random.default_rng(data.draw(st.integers(0, 99))).random((batch, prompt)) < 0.7
    valid[:, prompt // 2] = True
    policy, watch = watched(window, layers, "prefill")
    session = Session(policy, backend_by_name(backend), layers, prompt_length=prompt)
    run(session, request, valid, data.draw(splits(prompt)))
    assert watch.seen == [[latest(request, valid, layer, prompt, window)] for layer in range(layers)]
    assert all(step.phase is Phase.PREFILL for step in watch.steps)


@given(st.data(), BACKENDS, st.integers(1, 9))
def test_while_decoding_the_window_reaches_back_into_the_prompt(data: st.DataObject, backend: str, window: int) -> None:
    request = data.draw(requests(max_batch=3, max_prompt=10, max_steps=5))
    prompt, layers, batch = request.prompt, *request.keys.shape[:2]
    valid = np.random.default_rng(data.draw(st.integers(0, 99))).random((batch, request.tokens)) < 0.7
    valid[:, prompt:] = True
    steps = (1,) * (request.tokens - prompt)
    policy, watch = watched(window, layers, "decode")
    session = Session(policy, backend_by_name(backend), layers, prompt_length=prompt)
    run(session, request, valid, (*data.draw(splits(prompt)), *steps))
    ends = range(prompt + 1, request.tokens + 1)
    assert watch.seen == [[latest(request, valid, layer, end, window) for end in ends] for layer in range(layers)]


@pytest.mark.parametrize("padding", [(0, 0), (0, 5), (9, 2)])
@BOTH
def test_scores_and_tables_do_not_depend_on_the_chunks(backend: str, padding: tuple[int, ...]) -> None:
    request = make_request(layers=2, batch=2, heads=2, groups=2, prompt=14, steps=3, padding=padding)

    def tables(chunks: tuple[int, ...]) -> Any:
        stage = Pipeline(schedule=FixedRows(6), score=Wide(5))
        return drive(Policy(prefill=stage, decode=stage), request, backend=backend, chunks=chunks)

    whole = tables((14,))
    for chunks in ((1,) * 14, (13, 1), (2, 3, 9), (7, 7)):
        for a, b in zip(tables(chunks).passes[-4:], whole.passes, strict=True):
            same_tables(a, b, tolerance=1e-12)


def kept(session: Session) -> list[int]:
    """How many queries each layer keeps between passes."""
    return [0 if state.queries is None else int(state.queries.positions.shape[1]) for state in session._layers]


@BOTH
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_as_many_queries_are_kept_as_a_scorer_asks_for(backend: str, phase: str) -> None:
    request = make_request(layers=2, prompt=12, steps=9)
    session = Session(watched(4, 2, phase)[0], backend_by_name(backend), 2, prompt_length=12)
    counts = []
    for start, length in ((0, 3), (3, 5), (8, 4), (12, 1), (13, 1)):
        feed(session, request, start, length)
        (count,) = set(kept(session))
        counts.append(count)
    # Once the prompt is complete only what decoding looks at is worth its memory.
    assert counts == ([3, 4, 0, 0, 0] if phase == "prefill" else [3, 4, 4, 4, 4])


@BOTH
@pytest.mark.parametrize(("score", "due"), [(Recency(), 0), (Wide(1), 1)], ids=["none", "one"])
def test_nothing_is_kept_where_nobody_looks_back(backend: str, score: Any, due: int) -> None:
    # What is left of a prompt may be padding; a token that is decoded is its own latest query.
    request = make_request(prompt=6, steps=2)
    stage = Pipeline(schedule=FixedRows(3), score=score)
    session = Session(Policy(prefill=stage, decode=stage), backend_by_name(backend), 1, prompt_length=6)
    for start, length in ((0, 4), (4, 2), (6, 1)):
        feed(session, request, start, length)
        assert kept(session) == [due if start == 0 else 0]


def test_kept_queries_hold_no_more_than_themselves() -> None:
    request = make_request(prompt=64, steps=1)
    session = drive(watched(4, 1, "decode")[0], request).session
    state = session._layers[0].queries
    assert state is not None
    assert state.vectors.untyped_storage().nbytes() == 4 * 2 * 4 * 8  # queries, heads, dim, float64


@BOTH
def test_a_second_turn_starts_from_its_own_queries_unless_decoding_kept_some(backend: str) -> None:
    request = make_request(prompt=8, steps=6)
    for phases, due in ((("prefill",), 3), (("prefill", "decode"), 5)):
        policy, watch = watched(5, 1, *phases)
        session = Session(policy, backend_by_name(backend), 1, prompt_length=8)
        for start, length in ((0, 8), (8, 1), (9, 3)):
            feed(session, request, start, length)
        assert [position for position, _ in watch.seen[0][-1][0]] == list(range(12 - due, 12))


@BOTH
def test_beams_take_their_queries_along_and_a_new_request_has_none(backend: str) -> None:
    request = make_request(batch=3, prompt=7, steps=3, padding=(0, 4, 6))
    policy, watch = watched(4, 1, "decode")
    session = Session(policy, backend_by_name(backend), 1)
    feed(session, request, 0, 7)
    feed(session, request, 7, 1)
    session.select_batch(to(backend, np.array([2, 0])))
    index = [2, 0]
    arrays = (data[:, index] for data in (request.queries, request.keys, request.values))
    chosen = Request(*arrays, request.prompt, request.scale, (6, 0))
    feed(session, chosen, 8, 1)
    valid = np.arange(9) >= np.array([[6], [0]])
    assert watch.seen[0][-1] == latest(chosen, valid, 0, 9, 4)
    session.clear()
    assert kept(session) == [0]
    feed(session, make_request(prompt=2, steps=1), 0, 2)
    feed(session, make_request(prompt=2, steps=1), 2, 1)
    assert [position for position, _ in watch.seen[0][-1][0]] == [0, 1, 2]


class TestLatest:
    @staticmethod
    def step(backend: str, positions: list[int], valid: list[bool], **settings: Any) -> Step:
        count = np.array([1])
        places, real = to(backend, np.array([positions])), to(backend, np.array([valid]))
        queries = to(backend, np.array(positions, dtype=float).reshape(1, 1, -1, 1))
        ops = backend_by_name(backend)
        return Step(Phase.PREFILL, count, count, count[:, None], queries, places, real, 1.0, ops, **settings)

    @BOTH
    @pytest.mark.parametrize(
        ("valid", "count", "due"),
        [
            ([1, 1, 1, 1], 2, [2, 3]),
            ([1, 1, 1, 0], 2, [1, 2]),
            ([0, 1, 0, 1], 2, [1, 3]),
            ([0, 0, 1, 0], 2, [2]),
            ([0, 0, 0, 0], 2, []),
            ([1, 1, 1, 1], 0, []),
            ([1, 0, 1, 1], 9, [0, 2, 3]),
        ],
    )
    def test_the_last_valid_ones_in_order(self, backend: str, valid: list[int], count: int, due: list[int]) -> None:
        last = self.step(backend, [0, 1, 2, 3], [bool(v) for v in valid]).latest(count)
        real = np.asarray(last.query_valid)[0]
        assert np.asarray(last.query_positions)[0, real].tolist() == due
        assert np.asarray(last.queries)[0, 0, real, 0].tolist() == due
        assert (last.earlier, last.whole_pass) == (None, False)

    @BOTH
    def test_earlier_ones_come_before_those_of_this_pass(self, backend: str) -> None:
        before = self.step(backend, [2, 3, 4], [True, False, True])
        earlier = Queries(before.queries, before.query_positions, before.query_valid)
        now = self.step(backend, [5, 6], [True, True], earlier=earlier)
        assert np.asarray(now.latest(3).query_positions).tolist() == [[4, 5, 6]]
        assert np.asarray(now.latest(1).query_positions).tolist() == [[6]]
        once = now.latest(4)
        assert np.asarray(once.query_positions).tolist() == [[2, 4, 5, 6]]
        assert np.asarray(once.latest(2).query_positions).tolist() == [[5, 6]]
        assert replace(once, scale=2.0).earlier is None
