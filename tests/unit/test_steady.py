"""Decoding in tensors that stay in place: the same rows as decoding in tables that change their shapes."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from custom_stages import Loudness
from driving import PassTrace, Request, attend, make_request, same_tables, table_of, to
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import (
    AttentionMass,
    CacheError,
    CacheView,
    Clusters,
    Column,
    Every,
    FixedRows,
    Heads,
    HeadTable,
    KeepRatio,
    MemoryBudget,
    Pass,
    Phase,
    Pipeline,
    PlanError,
    Policy,
    PolicyError,
    Recency,
    Session,
    Shared,
    Step,
    TopK,
    WindowMass,
    ada_kv,
    adore,
    backend_by_name,
    cam,
    elastic_cache,
    full,
    h2o,
    k_norm,
    pyramid_kv,
    snapkv,
    streaming_llm,
    tova,
)

MAX_LENGTH = 40


def decoding(schedule: Any, score: Any = None, **stages: Any) -> Policy:
    """The same pipeline for prompts and tokens."""
    pipeline = Pipeline(schedule=schedule, score=score or Recency(), **stages)
    return Policy(prefill=pipeline, decode=pipeline)


POLICIES = {
    "full": full(),
    "elastic_cache": elastic_cache(keep=0.5),
    "elastic_cache in rows": elastic_cache(rows=6),
    "elastic_cache by attention": elastic_cache(keep=0.4, discard="frequency"),
    "streaming_llm": streaming_llm(keep=0.5),
    "h2o": h2o(keep=0.5),
    "tova": tova(keep=0.5),
    "k_norm": k_norm(rows=7),
    "snapkv": snapkv(keep=0.5, window=3),
    "ada_kv": ada_kv(rows=5, window=3),
    "pyramid_kv": pyramid_kv(rows=6, window=3),
    "memory": decoding(MemoryBudget("2KiB")),
    "every third token": decoding(Every(3, KeepRatio(0.5)), AttentionMass()),
    "moving average": decoding(FixedRows(6), AttentionMass(reduce="moving")),
    "mean": decoding(KeepRatio(0.5), AttentionMass(reduce="mean", heads="mean")),
    "heads of their own": decoding(FixedRows(5), AttentionMass(), allocate=HeadTable(((3.0, 1.0), (1.0, 2.0)))),
    "only while decoding": Policy(decode=Pipeline(schedule=FixedRows(5), score=AttentionMass())),
    "counts": Policy(decode=Pipeline(schedule=FixedRows(6), score=AttentionMass()), count_bias=True),
}


def run(session: Session, request: Request, start: int, length: int = 1) -> PassTrace:
    """One pass, of whichever kind the session runs; and the tables, wherever they are then."""
    now, outputs = np.s_[start : start + length], []
    bias, host = session.policy.count_bias, session.ops.host
    positions = np.broadcast_to(np.arange(start, start + length), (request.keys.shape[1], length))
    valid = positions >= np.array(request.left)[:, None]
    step = Pass(start, to("torch", positions), to("torch", valid), valid.sum(axis=1).astype(np.int64), {})
    steady = session.steady if length == 1 else []
    for layer in range(len(request.keys)):
        keys, values, queries = (
            to("torch", data[layer][:, :, now]) for data in (request.keys, request.values, request.queries)
        )
        view = steady[layer].put(keys, values) if steady else session.append(layer, keys, values, step)
        asking = request.queries[layer][:, :, now]
        outputs.append(attend(view, asking, positions, request.scale, host, count_bias=bias)[0])
        if steady:
            steady[layer].advance(view, steady[layer].step(queries, request.scale))
        else:
            session.advance(layer, queries, request.scale, step)
    views = [one.table.rows() for one in session.steady] or [state.store.view() for state in session._layers]
    heads = range(request.keys.shape[2])
    return PassTrace(
        np.stack(outputs), [[[table_of(v, b, h, host) for h in heads] for b in range(len(valid))] for v in views]
    )


def started(policy: Policy, request: Request, *, steady: bool, **settings: Any) -> Session:
    """A session that has taken the prompt."""
    session = Session(policy, backend_by_name("torch"), len(request.keys), **settings)
    if steady:
        session.hold_steady(MAX_LENGTH)
    run(session, request, 0, request.prompt)
    return session


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("padding", [(), (0, 5)])
def test_the_same_rows_at_every_token(name: str, padding: tuple[int, ...]) -> None:
    request = make_request(layers=2, batch=2, groups=2, prompt=14, steps=18, padding=padding)
    plain, steady = (started(POLICIES[name], request, steady=kind) for kind in (False, True))
    assert len(steady.steady) == 2
    for start in range(14, 32):
        mine, yours = run(steady, request, start), run(plain, request, start)
        np.testing.assert_allclose(mine.outputs, yours.outputs, rtol=1e-12, atol=1e-12)
        same_tables(mine, yours, tolerance=1e-12)
    assert books(steady) == books(plain)


def books(session: Session) -> Any:
    """What a report says, without the storage that lies behind it."""
    report = session.report()
    told = [(one.rows, one.most, one.evicted, one.merged, one.full_kv_bytes) for one in report.layers]
    return report.tokens, told


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(POLICIES)), st.integers(0, 8), st.integers(1, 8))
def test_what_comes_after_is_the_same_too(seed: int, name: str, tokens: int, length: int) -> None:
    request = make_request(seed=seed, layers=2, batch=2, prompt=9, steps=tokens + length + 4, padding=(0, 2))
    plain, steady = (started(POLICIES[name], request, steady=kind) for kind in (False, True))
    for start in range(9, 9 + tokens):
        run(steady, request, start)
        run(plain, request, start)
    assert steady.length() == plain.length() == 9 + tokens
    assert steady.steady
    done = [run(session, request, 9 + tokens, length) for session in (steady, plain)]
    same_tables(done[0], done[1], tolerance=1e-12)
    assert books(steady) == books(plain)
    assert steady.steady  # also after a further prompt


@dataclass(frozen=True)
class Told:
    """Notes what it is told of the tokens decoded."""

    notes: list[list[Any]] = field(default_factory=list)

    def score(self, view: CacheView, step: Step, /) -> Any:
        """The later, the better."""
        if step.phase is Phase.DECODE:
            told = (step.seen, step.length, step.prompt, step.prompt_kept, step.query_positions, step.query_valid)
            self.notes.append([np.ravel(data).tolist() for data in told])
        return view.xp.astype(view.positions, view.xp.float64)


def test_stages_are_told_the_same_of_every_token() -> None:
    request = make_request(layers=2, batch=2, prompt=14, steps=3, padding=(0, 5))
    plain, steady = Told(), Told()
    for told in (plain, steady):
        session = started(decoding(FixedRows(6), told), request, steady=told is steady)
        for start in (14, 15, 16):
            run(session, request, start)
    assert len(plain.notes) == 3 * 2
    assert steady.notes == plain.notes


def test_the_last_token_there_is_room_for_has_a_budget_of_its_own() -> None:
    request = make_request(prompt=MAX_LENGTH - 3, steps=3)
    session = started(decoding(KeepRatio(0.7)), request, steady=True)
    held = [len(run(session, request, start).tables[0][0][0].positions) for start in (37, 38, 39)]
    assert held == [27, 27, 28]  # 0.7 of 38, 39 and 40 tokens


def test_tokens_that_were_planned_in_place_cannot_be_taken_back() -> None:
    request = make_request(prompt=10, steps=2)
    session = started(streaming_llm(rows=6), request, steady=True)
    run(session, request, 10)
    run(session, request, 11)
    with pytest.raises(CacheError, match=r"crop\(11\): a plan of .* the tokens up to 12 cannot be taken back"):
        session.crop(11)
    session.crop(12)


def test_scalars_of_tables_in_place_are_reported() -> None:
    session = started(h2o(rows=6), make_request(layers=2, prompt=10, steps=0), steady=True)
    told = [layer.column_bytes for layer in session.report().layers]
    assert told == [layer.table.nbytes()[1] for layer in session.steady]
    assert min(told) > 0


def test_the_room_is_what_the_schedule_will_allow() -> None:
    request = make_request(batch=2, prompt=20, steps=0)
    session = started(streaming_llm(keep=0.5), request, steady=True)
    assert [layer.capacity for layer in session.report().layers] == [21]  # half of 40 tokens, and the one that arrives
    kept = started(full(), request, steady=True).report().layers[0]
    assert (kept.capacity, kept.rows, kept.most) == (40, 20, 20)
    assert kept.kv_bytes == 2 * kept.full_kv_bytes


def test_no_room_beyond_max_length() -> None:
    request = make_request(prompt=38, steps=4)
    session = started(full(), request, steady=True)
    run(session, request, 38)
    run(session, request, 39)
    with pytest.raises(IndexError, match="out of bounds"):
        run(session, request, 40)


def test_beyond_max_length_a_budget_stays_what_it_is() -> None:
    request = make_request(prompt=36, steps=12)
    session = started(elastic_cache(rows=6), request, steady=True)
    for start in range(36, 48):
        assert len(run(session, request, start).tables[0][0][0].positions) == 6


@pytest.mark.parametrize("name", ["h2o", "full", "every third token", "heads of their own"])
def test_batch_rows_change_places(name: str) -> None:
    request = make_request(layers=2, batch=3, prompt=12, steps=8, padding=(0, 4, 2))
    plain, steady = (started(POLICIES[name], request, steady=kind) for kind in (False, True))
    order = torch.tensor([2, 0, 2])
    for session in (plain, steady):
        run(session, request, 12)
        session.select_batch(order)
        run(session, request, 13)
    same_tables(run(steady, request, 14), run(plain, request, 14), tolerance=1e-12)
    assert steady.steady
    for session in (plain, steady):
        session.select_batch(order[:2])  # another number of rows needs other shapes
    assert not steady.steady
    assert books(steady) == books(plain)


def test_batch_rows_of_different_room_do_not_change_places() -> None:
    request = make_request(batch=2, prompt=30, steps=2, padding=(0, 25))
    session = started(full(), request, steady=True)
    with pytest.raises(CacheError, match=r"batch rows whose heads have different room.*Hint: beam search without"):
        session.select_batch(torch.tensor([1, 0]))


def test_a_copy_goes_its_own_way() -> None:
    request = make_request(layers=2, batch=2, prompt=12, steps=6)
    session = started(h2o(keep=0.5), request, steady=True)
    run(session, request, 12)
    other = copy.deepcopy(session)
    mine = [run(session, request, start) for start in (13, 14)]
    yours = [run(other, request, start) for start in (13, 14)]
    for one, two in zip(mine, yours, strict=True):
        same_tables(one, two)


def test_registers_come_back() -> None:
    request = make_request(prompt=10, steps=2)
    session = Session(elastic_cache(rows=5), backend_by_name("torch"), 1)
    session.hold_steady(MAX_LENGTH)
    run(session, request, 0, request.prompt)
    session.steady[0].table.registers["threshold"] = torch.full((1, 2), 0.25)
    session.select_batch(torch.tensor([0]))
    session.resume()
    assert session._layers[0].store.view().registers["threshold"].tolist() == [[0.25, 0.25]]


def test_clear_starts_over() -> None:
    request = make_request(layers=2, prompt=10, steps=4)
    session = started(h2o(keep=0.5), request, steady=True)
    run(session, request, 10)
    session.clear()
    assert session.length() == 0
    assert not session.steady
    run(session, request, 0, request.prompt)
    same_tables(run(session, request, 10), run(started(h2o(keep=0.5), request, steady=False), request, 10))


@dataclass(frozen=True)
class Peeks:
    """A scheduler that looks at more than counts."""

    name: str

    def budget(self, step: Step, /) -> int:
        """Whatever it can see."""
        if self.name == "queries":
            return int(step.queries.shape[1])
        return int(step.held[0].max())


@pytest.mark.parametrize("name", ["queries", "held"])
def test_a_schedule_goes_by_counts(name: str) -> None:
    request = make_request(prompt=10, steps=2)
    policy = Policy(decode=Pipeline(schedule=Peeks(name), score=Recency()))
    with pytest.raises(CacheError, match=re.escape(f"Peeks(name='{name}')") + ".*looks at a token that has not come"):
        started(policy, request, steady=True)


REFUSED = {
    "recall": (adore(keep=0.5), "recall=.* brings back as many rows"),
    "select": (
        decoding(FixedRows(9), select=TopK(text=True)),
        "select=TopK.*text=True.* may keep more rows than the quota",
    ),
    "selector": (decoding(FixedRows(9), select=Clusters()), "select=Clusters.* may keep more rows than the quota"),
    "merge": (cam(keep=0.5), "merge=.* folds rows while decoding"),
    "window": (decoding(FixedRows(9), WindowMass(window=4)), "score=WindowMass.* looks at queries of earlier tokens"),
    "layers": (decoding(FixedRows(9), Shared(Recency())), "score=Shared.* waits until every layer has attended"),
    "slots": (streaming_llm(keep=0.5, positions="slots"), "positions='slots' turns every key at every token"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_policy_whose_tables_cannot_be_foreseen_is_refused(what: str) -> None:
    policy, says = REFUSED[what]
    session = Session(policy, backend_by_name("torch"), 1, rotate=lambda x, by: x)
    with pytest.raises(PolicyError, match=says):
        session.hold_steady(MAX_LENGTH)


def test_allocators_that_go_by_scores_are_refused() -> None:
    allocate = ada_kv(rows=5).prefill
    assert allocate is not None
    policy = decoding(FixedRows(5), AttentionMass(), allocate=allocate.allocate)
    with pytest.raises(PolicyError, match=r"allocate=AdaptiveHeads.* shares the budget out by scores"):
        Session(policy, backend_by_name("torch"), 1).hold_steady(MAX_LENGTH)


class Halves(Heads):
    """Two processes share the heads."""

    parts = 2

    def all(self, data: Any, /) -> Any:
        """Never asked."""
        raise NotImplementedError

    def own(self, data: Any, /) -> Any:
        """Never asked."""
        raise NotImplementedError


def test_what_a_session_cannot_hold_steady() -> None:
    with pytest.raises(CacheError, match="backend='numpy' has no tables"):
        Session(h2o(keep=0.5), backend_by_name("numpy"), 1).hold_steady(MAX_LENGTH)
    with pytest.raises(CacheError, match="heads shared by 2 processes"):
        Session(h2o(keep=0.5), backend_by_name("torch"), 1, heads=Halves()).hold_steady(MAX_LENGTH)
    session = started(h2o(keep=0.5), make_request(prompt=10, steps=0), steady=False)
    with pytest.raises(CacheError, match="comes before the prompt, and 10 tokens have passed"):
        session.hold_steady(MAX_LENGTH)
    with pytest.raises(PolicyError, match="max_length=0"):
        Session(h2o(keep=0.5), backend_by_name("torch"), 1).hold_steady(0)
    session = Session(h2o(keep=0.5), backend_by_name("torch"), 1)
    session.hold_steady(10)
    with pytest.raises(CacheError, match="max_length=10: the prompt has 10 tokens"):
        run(session, make_request(prompt=10, steps=0), 0, 10)


class Appears(Loudness):
    """Observes a column that prompts do not have."""

    def observe(self, view: CacheView, step: Step, /) -> dict[str, Column]:
        """A new column, once there is one decoded token."""
        return {"late": Column(view.column("count", needed_by="Appears"))} if step.phase.value == "decode" else {}


def test_a_column_is_there_from_the_prompt_on() -> None:
    request = make_request(prompt=10, steps=2)
    policy = Policy(decode=Pipeline(schedule=FixedRows(5), score=Appears()))
    session = started(policy, request, steady=True)
    with pytest.raises(PlanError, match="column 'late' is new while decoding compiled"):
        run(session, request, 10)


def test_stages_do_not_see_other_layers() -> None:
    request = make_request(layers=2, prompt=10, steps=2)

    @dataclass(frozen=True)
    class Nosy:
        def score(self, view: CacheView, step: Step, /) -> Any:
            return view.column("count", needed_by="Nosy") * float(step.held[0].max())

    policy = Policy(decode=Pipeline(schedule=FixedRows(5), score=Nosy()))
    session = started(policy, request, steady=True)
    with pytest.raises(CacheError, match="looks at the rows that layers hold"):
        run(session, request, 10)
