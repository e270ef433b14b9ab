"""Tokens that are taken back: exactly as if they had never come, or refused and nothing changed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from custom_stages import ByHead, Loudness, Recall, Watch, recalling
from driving import Request, drive, feed, make_request, only, rotary, same_tables, tables_of, to
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import (
    AttentionMass,
    CacheError,
    FixedRows,
    Pass,
    Pipeline,
    Policy,
    Pooled,
    Recency,
    Session,
    WindowMass,
    ada_kv,
    backend_by_name,
    elastic_cache,
    full,
    h2o,
    snapkv,
    streaming_llm,
    tova,
)

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])
BOOKS = ("length", "seen", "prompt", "prompt_kept", "prompt_quota", "held", "archived", "left", "exceeded", "recalled")

# Only the prompt is planned: tokens that were decoded can be taken back, however ragged the heads are.
PROMPT_ONLY = [
    snapkv(rows=5, window=3),
    ada_kv(rows=5, window=3),
    Policy(prefill=elastic_cache(rows=5).prefill),
    Policy(
        prefill=Pipeline(schedule=FixedRows(5), score=Loudness(), allocate=ByHead(((4, -4),) * 2)), positions="slots"
    ),
]
# Nothing is ever over these budgets, and nothing is observed.
WITHIN = [streaming_llm(rows=99), tova(rows=99), Policy(decode=Pipeline(schedule=FixedRows(99), score=Recency()))]


def books(session: Session) -> list[dict[str, Any]]:
    return [
        {name: np.asarray(getattr(state, name)).tolist() for name in BOOKS}
        | {"merged": 0 if state.merged is None else session.ops.host(state.merged).tolist()}
        for state in session._layers
    ]


def start(policy: Policy, request: Request, backend: str, *passes: int, **settings: Any) -> Session:
    """A session that has seen these passes of the request."""
    session = Session(policy, backend_by_name(backend), len(request.keys), rotate=rotary, **settings)
    for length in passes:
        feed(session, request, session.length(), length)
    return session


def same(one: Session, other: Session, request: Request, *further: int, skip: tuple[str, ...] = ()) -> None:
    """The same books and tables in both, now and after further passes; attention gives the same."""
    for length in (0, *further):
        if length:
            done = [feed(session, request, session.length(), length) for session in (one, other)]
            np.testing.assert_allclose(done[0].outputs, done[1].outputs, rtol=1e-12, atol=1e-12)
        mine, yours = books(one), books(other)
        for layer in (*mine, *yours):
            for name in skip:
                del layer[name]
        assert mine == yours
        for a, b in zip(tables_of(one, one.batch), tables_of(other, other.batch), strict=True):
            for heads, others in zip(a, b, strict=True):
                for table, due in zip(heads, others, strict=True):
                    assert table.positions == due.positions
                    assert table.keys.tobytes() == due.keys.tobytes()
                    assert table.values.tobytes() == due.values.tobytes()


@given(
    st.integers(0, 99),
    st.integers(1, 12),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.sampled_from(["numpy", "torch"]),
)
def test_a_full_cache_goes_back_to_any_length(seed: int, length: int, padding: tuple[int, int], backend: str) -> None:
    request = make_request(seed=seed, layers=2, batch=2, prompt=6, steps=12, padding=padding)
    session = start(full(), request, backend, 6, 1, 1, 5)
    session.crop(length)
    # In the middle of a pass it is as if the pass had ended there. What came in a prompt is counted for nobody.
    fresh = start(full(), request, backend, min(length, 6), *(1,) * (max(0, length - 6)))
    same(session, fresh, request, 2, 1, skip=("prompt", "prompt_kept"))


@BOTH
@pytest.mark.parametrize("policy", PROMPT_ONLY, ids=range(len(PROMPT_ONLY)))
@pytest.mark.parametrize("back", [1, 3])
def test_decoded_tokens_of_a_policy_for_prompts(backend: str, policy: Policy, back: int) -> None:
    request = make_request(layers=2, batch=2, prompt=12, steps=12, padding=(0, 3))
    session = start(policy, request, backend, 12, 1, 1, 1, 1)
    session.crop(16 - back)
    same(session, start(policy, request, backend, 12, *(1,) * (4 - back)), request, 1, 1, 3, 1)


@BOTH
@pytest.mark.parametrize("policy", WITHIN, ids=range(len(WITHIN)))
def test_decoded_tokens_within_the_budget(backend: str, policy: Policy) -> None:
    request = make_request(layers=2, batch=2, prompt=7, steps=12, padding=(5, 0))
    session = start(policy, request, backend, 7, 1, 1, 1)
    session.crop(8)
    same(session, start(policy, request, backend, 7, 1), request, 1, 1, 2)


@BOTH
@pytest.mark.parametrize("length", [1, 4, 6])
def test_a_prompt_that_is_not_complete(backend: str, length: int) -> None:
    request = make_request(layers=2, batch=2, prompt=10, steps=3, padding=(0, 5))
    policy = streaming_llm(rows=4, sinks=1)
    session = start(policy, request, backend, 5, 3, prompt_length=10)
    session.crop(length)
    fresh = start(policy, request, backend, length, prompt_length=10)
    same(session, fresh, request, 10 - length, 1, 1)


@BOTH
def test_beams_and_a_new_request(backend: str) -> None:
    request = make_request(layers=2, batch=3, prompt=9, steps=6, padding=(0, 2, 4))
    session = start(PROMPT_ONLY[1], request, backend, 9, 1, 1)
    session.select_batch(to(backend, np.array([2, 0, 2])))
    session.crop(10)
    index = [2, 0, 2]
    arrays = (data[:, index] for data in (request.queries, request.keys, request.values))
    chosen = Request(*arrays, request.prompt, request.scale, tuple(request.padding[b] for b in index))
    due = drive(PROMPT_ONLY[1], chosen, backend=backend)
    for number in (2, 3):
        done = feed(session, chosen, 8 + number, 1)
        for b in range(3):
            same_tables(only(done, b, 1), only(due.passes[number], b, 1), tolerance=1e-12)
    session.clear()
    feed(session, request, 0, 9)
    feed(session, request, 9, 1)
    session.crop(9)
    same(session, start(PROMPT_ONLY[1], request, backend, 9), request, 1)


@BOTH
def test_back_to_nothing_is_a_new_request_whatever_has_happened(backend: str) -> None:
    request, other = make_request(batch=2, prompt=9, steps=3), make_request(batch=3, heads=3, prompt=5, steps=1)
    session = start(h2o(rows=4), request, backend, 9, 1, 1)
    session.crop(0)
    assert (session.length(), session.batch, session.report().kv_bytes) == (0, 0, 0)
    same_tables(feed(session, other, 0, 5), drive(h2o(rows=4), other, backend=backend).passes[0])
    Session(full(), backend_by_name(backend), 0).crop(0)


@BOTH
def test_what_does_not_change_anything(backend: str) -> None:
    request = make_request(prompt=6, steps=2)
    session = start(h2o(rows=3), request, backend, 6, 1)
    session.crop(7)
    for length in (8, -1):
        with pytest.raises(CacheError, match=rf"crop\({length}\): 7 tokens have passed, so length must be in 0 .. 7"):
            session.crop(length)
    same(session, start(h2o(rows=3), request, backend, 6, 1), request, 1)


@BOTH
def test_not_in_the_middle_of_a_pass(backend: str) -> None:
    request = make_request(layers=2, prompt=4, steps=1)
    session = start(full(), request, backend, 4)
    keys, values, queries = (to(backend, data[0][:, :, 4:]) for data in (request.keys, request.values, request.queries))
    now = Pass(4, to(backend, np.array([[4]])), to(backend, np.array([[True]])), np.array([1]), {})
    session.append(0, keys, values, now)
    for advance in (True, False):
        for length in (0, 3, 4, 5):
            with pytest.raises(CacheError, match="in the middle of a pass"):
                session.crop(length)
        if advance:
            session.advance(0, queries, 1.0, now)
    assert [session.length(layer) for layer in range(2)] == [5, 4]


MANY = Policy(prefill=None, decode=Pipeline(schedule=FixedRows(99), score=WindowMass(window=4)))
AGAIN = Recall(lambda archive, step: archive.valid)
BOTH_WAYS = recalling(AGAIN, 5, score=Recency())


@BOTH
@pytest.mark.parametrize(
    ("policy", "passes", "to_", "settled", "says"),
    [
        (h2o(rows=99), (6, 1, 1), 7, 8, "AttentionMass() observed what they do to other rows"),
        (Policy(decode=h2o(rows=99).decode), (6,), 3, 6, "AttentionMass() observed"),
        (Policy(prefill=WITHIN[0].prefill, decode=h2o(rows=99).decode), (6, 1), 6, 7, "): AttentionMass() observed"),
        (MANY, (6, 1, 1), 7, 8, "WindowMass(window=4) goes by the latest queries"),
        (streaming_llm(rows=4), (6, 1, 1), 7, 8, "a plan of Pipeline(schedule=FixedRows(rows=4)"),
        (streaming_llm(rows=99), (6, 1), 4, 6, "Pipeline(schedule=FixedRows(rows=99), score=Recency(), "),
        (snapkv(rows=99), (6, 1), 4, 6, "counts from the prompt"),
        (snapkv(rows=99, window=2), (6, 1, 3, 1), 8, 10, "counts from the prompt"),
        (PROMPT_ONLY[2], (9, 1), 8, 9, "AttentionMass(heads='mean') observed"),
        (Policy(prefill=BOTH_WAYS, decode=BOTH_WAYS), (9, 1), 9, 10, "brought rows back from the archive"),
        (ada_kv(rows=3, window=3), (9, 1), 8, 9, "a plan of Pipeline(schedule=FixedRows(rows=3), score=Pooled("),
    ],
    ids=range(11),
)
def test_what_cannot_be_undone_is_refused(
    backend: str, policy: Policy, passes: tuple[int, ...], to_: int, settled: int, says: str
) -> None:
    request = make_request(layers=2, batch=2, prompt=6, steps=12, padding=(2, 0))
    session, untouched = (start(policy, request, backend, *passes) for _ in range(2))
    with pytest.raises(CacheError, match=re.escape(says)) as error:
        session.crop(to_)
    assert f"crop({to_}): " in str(error.value)
    assert f"Hint: crop({settled}) or more, or clear()" in str(error.value)
    session.crop(settled)  # the hint is true
    if settled == sum(passes):
        same(session, untouched, request, 1, 2)


@BOTH
def test_queries_of_chunks_cannot_be_given_back(backend: str) -> None:
    request = make_request(prompt=9, steps=1)
    session = start(snapkv(rows=5, window=3), request, backend, 4, 2, prompt_length=9)
    with pytest.raises(CacheError, match=r"WindowMass\(window=3\).* goes by the latest queries"):
        session.crop(5)
    feed(session, request, 6, 3)
    same_tables(feed(session, request, 9, 1), drive(snapkv(rows=5, window=3), request, backend=backend).passes[1])


@BOTH
def test_one_layer_that_was_planned_holds_back_all(backend: str) -> None:
    """The second layer gets fewer rows than it holds; the first is within its quota and has no plan."""
    request = make_request(layers=2, prompt=6, steps=4)
    decode = Pipeline(schedule=FixedRows(7), score=Loudness(), allocate=ByHead(((2, 2), (-2, -2))))
    session = start(Policy(decode=decode), request, backend, 6, 1)
    assert [state.left.tolist() for state in session._layers] == [[0], [4]]
    before = books(session)
    with pytest.raises(CacheError, match="a plan of"):
        session.crop(6)
    assert books(session) == before


@BOTH
def test_an_archive_stays_as_it_is(backend: str) -> None:
    request = make_request(prompt=12, steps=6)
    stage = recalling(AGAIN, 4, score=Recency())
    session = start(Policy(prefill=stage), request, backend, 12, 1, 1, 1)
    session.crop(13)
    same(session, start(Policy(prefill=stage), request, backend, 12, 1), request, 1, 3)


def test_wrappers_that_observe_nothing_do_not_stand_in_the_way() -> None:
    decode = Pipeline(schedule=FixedRows(99), score=Pooled(WindowMass(window=1)))
    request = make_request(prompt=5, steps=3)
    session = start(Policy(decode=decode), request, "torch", 5, 1, 1)
    session.crop(5)
    decode = Pipeline(schedule=FixedRows(99), score=Pooled(AttentionMass()))
    session = start(Policy(decode=decode), request, "torch", 5, 1, 1)
    with pytest.raises(CacheError, match=r"Pooled\(scorer=AttentionMass\(\)\) observed"):
        session.crop(5)


def test_slots_are_used_again() -> None:
    """Guessing several tokens and taking most of them back does not fill the storage with holes."""
    request = make_request(prompt=40, steps=200)
    session = start(full(), request, "torch", 40)
    for _ in range(40):
        length = session.length()
        feed(session, request, length, 5)
        session.crop(length + 1)
        assert session.report().layers[0].capacity <= (length + 6) * 5 / 4
    assert session.length() == 80
    session.crop(8)
    assert session.report().layers[0].capacity <= 9 * 5 / 4


def test_a_watching_schedule_sees_what_it_would_have_seen() -> None:
    request = make_request(prompt=6, steps=6)
    seen = []
    for crop in (True, False):
        watch = Watch(1)
        session = start(Policy(decode=Pipeline(schedule=watch, score=watch)), request, "torch", 6, 1)
        if crop:
            feed(session, request, 7, 1)
            session.crop(7)
            del watch.steps[-1]
        feed(session, request, 7, 1)
        step = watch.steps[-1]
        seen.append([step.seen, step.prompt, step.prompt_kept, step.held[0], step.length])
    for mine, due in zip(*seen, strict=True):
        assert np.array_equal(mine, due)
