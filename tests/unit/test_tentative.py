"""Tokens that may be taken back: those that stay leave what they would have left, had they been decoded one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from custom_stages import ByHead, Loudness
from driving import Request, attend, feed, make_request, on_host, rotary, same_tables, tables_of, to, with_image
from test_crop import books

from kvpolicy import (
    CacheError,
    FixedRows,
    KeepRatio,
    LikePrompt,
    Pass,
    Phase,
    Pipeline,
    Policy,
    Pyramid,
    Recency,
    Session,
    Shared,
    WindowMass,
    adore,
    backend_by_name,
    catalogue,
    d2o,
    full,
    h2o,
    streaming_llm,
    vl_cache,
)

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])
WINDOW = Pipeline(schedule=FixedRows(6), score=WindowMass(window=3))
PYRAMID = Pipeline(schedule=KeepRatio(0.5), score=Loudness(), allocate=Pyramid())
POLICIES = {
    **{name: policy for name, policy in catalogue(keep=0.5).items() if name not in ("d2o", "vl_cache", "air_cache")},
    "full": full(),
    "windowed": Policy(prefill=WINDOW, decode=WINDOW),
    "layers": Policy(prefill=PYRAMID, decode=PYRAMID),
    "heads": Policy(decode=Pipeline(schedule=FixedRows(6), score=Loudness(), allocate=ByHead(((2, -2), (-2, 2))))),
    "slots": Policy(decode=streaming_llm(rows=6).decode, positions="slots"),
}


def start(policy: Policy, request: Request, backend: str, *passes: int, **settings: Any) -> Session:
    session = Session(policy, backend_by_name(backend), len(request.keys), rotate=rotary, **settings)
    for length in passes:
        feed(session, request, session.length(), length)
    return session


def guess(session: Session, request: Request, settled: int, guesses: int, singly: bool = True) -> Any:
    """A pass of the model whose last tokens are guesses, layer by layer; what attention gives [L, B, Hq, Q, Dv]."""
    begin, backend, host = session.length(), session.ops.name, session.ops.host
    bounds = [begin, begin + settled, *range(begin + settled + 1, begin + settled + guesses + 1)]
    if not singly:
        bounds = [begin, begin + settled, begin + settled + guesses]
    layers, batch = request.keys.shape[:2]
    outputs = []
    for layer in range(layers):
        parts = []
        for number, (first, last) in enumerate(pairwise(bounds)):
            now = np.s_[:, :, first:last]
            positions = np.broadcast_to(np.arange(first, last), (batch, last - first))
            valid = positions >= np.array(request.left)[:, None]
            columns = {} if request.segment is None else {"segment": to(backend, request.segment[:, first:last])}
            tokens = valid.sum(axis=1).astype(np.int64)
            step = Pass(first, to(backend, positions), to(backend, valid), tokens, columns, tentative=number > 0)
            keys, values = (to(backend, data[layer][now]) for data in (request.keys, request.values))
            view = session.append(layer, keys, values, step)
            asking = session.turned(layer, to(backend, request.queries[layer][now]), step)
            heard = on_host(asking, host).astype(np.float64)
            bias = session.policy.count_bias
            parts.append(attend(view, heard, positions, request.scale, host, count_bias=bias)[0])
            session.advance(layer, asking, request.scale, step)
        outputs.append(np.concatenate(parts, axis=2))
    return np.stack(outputs)


@BOTH
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (2, 0), (3, 1)])
def test_tables_and_outputs_are_those_of_plain_decoding(backend: str, name: str, first: int, second: int) -> None:
    policy = POLICIES[name]
    request = make_request(seed=first, layers=2, batch=2, prompt=8, steps=12, padding=(second, 0))
    request = with_image(request, 3, 6)
    plain = start(policy, request, backend, prompt_length=8)
    guessing = start(policy, request, backend, prompt_length=8)
    for settled, guesses, stay in ((8, 3, first), (1, 2, second), (1, 0, 0)):
        outputs = guess(guessing, request, settled, guesses)
        due = [feed(plain, request, plain.length(), length) for length in (settled, *(1,) * stay)]
        so_far = np.concatenate([done.outputs for done in due], axis=3)
        np.testing.assert_allclose(outputs[:, :, :, : settled + stay], so_far, rtol=1e-9, atol=1e-9)
        guessing.crop(guessing.length() - guesses + stay)
        assert _counted(guessing) == _counted(plain)
        mine, yours = (tables_of(session, 2) for session in (guessing, plain))
        for a, b in zip(_rows(mine), _rows(yours), strict=True):
            assert a.positions == b.positions
            assert a.keys.tobytes() == b.keys.tobytes()
            assert {n: c.tolist() for n, c in a.columns.items()} == {n: c.tolist() for n, c in b.columns.items()}
    same_tables(feed(guessing, request, guessing.length(), 1), feed(plain, request, plain.length(), 1))


def _counted(session: Session) -> Any:
    layers = books(session)
    for layer in layers:
        layer["merged"] = np.sum(layer["merged"])
    return layers


def _rows(tables: Any) -> list[Any]:
    return [table for layer in tables for heads in layer for table in heads]


@BOTH
def test_a_policy_for_prompts_takes_guesses_in_one_pass(backend: str) -> None:
    request = make_request(layers=2, batch=2, prompt=8, steps=9)
    policy = POLICIES["snapkv"]
    session = start(policy, request, backend, prompt_length=8)
    outputs = guess(session, request, 8, 4, singly=False)
    plain = start(policy, request, backend, 8, prompt_length=8)
    due = [feed(plain, request, 8 + number, 1).outputs for number in range(2)]
    np.testing.assert_allclose(outputs[:, :, :, 8:10], np.concatenate(due, axis=3), rtol=1e-9, atol=1e-9)
    session.crop(10)
    assert _counted(session) == _counted(plain)
    same_tables(feed(session, request, 10, 1), feed(plain, request, 10, 1), tolerance=1e-12)


def told(policy: Policy, request: Request, run: Callable[[Session], None]) -> list[tuple[int, int]]:
    plans: list[tuple[int, int]] = []
    run(
        start(
            policy,
            request,
            "numpy",
            prompt_length=8,
            listen=lambda layer, view, plan, step: plans.append((step.length, layer)),
        )
    )
    return plans


def test_plans_are_told_once_and_in_order() -> None:
    request = make_request(layers=2, prompt=8, steps=9)

    def guessing(session: Session) -> None:
        guess(session, request, 8, 3)
        session.crop(9)

    def plainly(session: Session) -> None:
        feed(session, request, 0, 8)
        feed(session, request, 8, 1)

    plans = told(h2o(rows=4), request, guessing)
    assert plans == told(h2o(rows=4), request, plainly) == [(8, 0), (8, 1), (9, 0), (9, 1)]


@BOTH
def test_batch_rows_are_chosen_of_what_stays(backend: str) -> None:
    """Whoever reorders has kept every guess."""
    request = make_request(layers=2, batch=2, prompt=8, steps=4)
    session, plain = start(h2o(rows=4), request, backend, 8), start(h2o(rows=4), request, backend, 8, 1, 1)
    guess(session, request, 1, 1)
    for one in (session, plain):
        one.select_batch(to(backend, np.array([1, 1])))
    assert _counted(session) == _counted(plain)


@BOTH
def test_guesses_wait_for_crop(backend: str) -> None:
    request = make_request(layers=2, prompt=6, steps=6)
    session = start(h2o(rows=4), request, backend, 6)
    guess(session, request, 1, 2)
    with pytest.raises(CacheError, match=r"2 tokens that may be taken back wait.*Hint: crop\(\)"):
        feed(session, request, 9, 1)
    before = books(session)
    with pytest.raises(CacheError, match=re.escape("crop(6): AttentionMass() observed")):
        session.crop(6)
    assert books(session) == before
    session.crop(7)
    same_tables(feed(session, request, 7, 1), feed(start(h2o(rows=4), request, backend, 6, 1), request, 7, 1))
    guess(session, request, 1, 1)
    session.crop(0)
    assert session.length() == 0
    same_tables(feed(session, request, 0, 6), feed(start(h2o(rows=4), request, backend), request, 0, 6))


def test_behind_the_guesses_what_can_be_undone_is_undone() -> None:
    request = make_request(layers=2, prompt=6, steps=6)
    policy = Policy(decode=Pipeline(schedule=FixedRows(99), score=Recency()))
    session = start(policy, request, "torch", 6, 1, 1)
    guess(session, request, 1, 2)
    session.crop(7)
    plain = start(policy, request, "torch", 6, 1)
    assert _counted(session) == _counted(plain)
    same_tables(feed(session, request, 7, 1), feed(plain, request, 7, 1))


def test_guesses_come_one_a_pass_where_the_policy_acts() -> None:
    request = make_request(prompt=6, steps=6)
    session = start(h2o(rows=4), request, "numpy", 6)
    with pytest.raises(CacheError, match=r"a tentative pass of 2 tokens.*Hint: one token a pass"):
        guess(session, request, 1, 2, singly=False)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (d2o(rows=4), "Policy(prefill=...): ByVariance() waits"),
        (vl_cache(rows=4), "Policy(prefill=...): BySparsity() waits"),
        (
            Policy(decode=Pipeline(schedule=FixedRows(4), score=Shared(Loudness()))),
            f"Policy(decode=...): {Shared(Loudness())!r} waits until every layer has attended",
        ),
    ],
    ids=range(3),
)
def test_a_stage_that_waits_for_all_layers_is_named(policy: Policy, says: str) -> None:
    session = Session(policy, backend_by_name("numpy"), 2)
    with pytest.raises(CacheError, match=re.escape(says)):
        session.check_tentative()
    Session(adore(rows=4), backend_by_name("numpy"), 2).check_tentative()


def test_they_are_refused_where_such_a_stage_decodes() -> None:
    request = make_request(layers=2, prompt=6, steps=3)
    policy = Policy(decode=Pipeline(schedule=FixedRows(4), score=Shared(Loudness())))
    with pytest.raises(CacheError, match="waits until every layer has attended"):
        guess(start(policy, request, "numpy", 6), request, 1, 1)


LIKE_PROMPT = Pipeline(schedule=KeepRatio(0.5), score=Loudness(), allocate=LikePrompt())
SHARING = Policy(prefill=PYRAMID, decode=LIKE_PROMPT)


@BOTH
def test_quotas_of_a_prompt_are_known_once_it_has_passed(backend: str) -> None:
    request = make_request(layers=3, prompt=8, steps=6)
    session = start(SHARING, request, backend, 8, 1, prompt_length=8)
    guess(session, request, 1, 3)
    session.crop(11)
    plain = start(SHARING, request, backend, 8, 1, 1, 1, prompt_length=8)
    assert _counted(session) == _counted(plain)


def test_quotas_of_a_prompt_that_is_in_the_same_pass_are_not() -> None:
    request = make_request(layers=3, prompt=8, steps=6)
    session = start(SHARING, request, "numpy", prompt_length=8)
    with pytest.raises(CacheError, match="looks at layer 1 while layer 0 runs tokens that may be taken back"):
        guess(session, request, 8, 1)


@dataclass(frozen=True)
class Looking:
    """A scorer that takes other layers into account, in decoding."""

    look: Callable[[Any], Any]

    def score(self, view: Any, step: Any) -> Any:
        if step.phase is Phase.DECODE:
            self.look(step.held)
        return -view.xp.astype(view.positions, view.xp.float32)


@pytest.mark.parametrize("look", [np.stack, lambda held: np.concatenate(held, axis=1), lambda held: held[1].sum()])
def test_rows_of_other_layers_are_not_guessed(look: Callable[[Any], Any]) -> None:
    request = make_request(layers=2, prompt=8, steps=6)
    policy = Policy(decode=Pipeline(schedule=FixedRows(4), score=Looking(look)))
    session = start(policy, request, "numpy", 8, 1)
    with pytest.raises(CacheError, match="looks at layer 1 while layer 0 runs"):
        guess(session, request, 1, 1)


def test_before_the_guesses_other_layers_stand_as_in_plain_decoding() -> None:
    request = make_request(layers=3, prompt=8, steps=6)

    def seen(guessing: bool) -> list[Any]:
        held: list[Any] = []
        policy = Policy(decode=Pipeline(schedule=FixedRows(4), score=Looking(lambda rows: held.append(str(rows)))))
        session = start(policy, request, "numpy", 8)
        if guessing:
            guess(session, request, 1, 1)
            held = held[::2]
        else:
            feed(session, request, 8, 1)
        return held

    assert seen(guessing=True) == seen(guessing=False)


def test_a_further_prompt_is_compacted_once_it_is_complete() -> None:
    request = make_request(layers=2, prompt=8, steps=12)
    chunked, whole = (start(h2o(rows=4), request, "numpy", 8, 1) for _ in range(2))
    chunked.expect(15)
    for length in (1, 3, 2):
        feed(chunked, request, chunked.length(), length)
    feed(whole, request, 9, 6)
    assert _counted(chunked) == _counted(whole)
    same_tables(feed(chunked, request, 15, 1), feed(whole, request, 15, 1), tolerance=1e-12)
    for wrong in (0, 15, 16):
        with pytest.raises(CacheError, match=rf"expect\({wrong}\): 16 tokens have passed"):
            chunked.expect(wrong)
    Session(full(), backend_by_name("numpy"), 0).expect(3)
