"""What a model may do to its logits and its mask: caps, sinks, and tokens that see later ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from custom_stages import Watch
from driving import to
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import (
    AttentionMass,
    CacheView,
    Column,
    ExpectedAttention,
    KeepRatio,
    Pass,
    Phase,
    Pipeline,
    Policy,
    Session,
    Step,
    UnsupportedModelError,
    backend_by_name,
    h2o,
    keep_kv,
)
from kvpolicy.backends.torch import TorchBackend

BATCH, HEADS, GROUPS, TOKENS, DIM = 2, 2, 3, 7, 5
BACKENDS = ["numpy", "torch"]
BOTH = pytest.mark.parametrize("backend", BACKENDS)


def scene(backend: str, seed: int, **logits: Any) -> tuple[CacheView, Step]:
    """A prompt of which some tokens are padding, and the step of its one pass."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((BATCH, HEADS, TOKENS, DIM))
    queries = 2 * rng.standard_normal((BATCH, HEADS * GROUPS, TOKENS, DIM))
    places = np.broadcast_to(np.arange(TOKENS), (BATCH, TOKENS))
    valid = rng.random((BATCH, TOKENS)) < 0.8
    per_head = (BATCH, HEADS, TOKENS)
    view = CacheView(
        to(backend, keys),
        to(backend, keys),
        to(backend, np.broadcast_to(places[:, None], per_head)),
        to(backend, np.broadcast_to(valid[:, None], per_head)),
        {"count": Column(to(backend, rng.integers(1, 4, per_head).astype(np.float32)), "sum")},
    )
    seen = valid.sum(axis=1)
    step = Step(
        Phase.PREFILL,
        seen,
        seen,
        np.zeros((BATCH, HEADS), np.int64),
        to(backend, queries),
        to(backend, places),
        to(backend, valid),
        0.6,
        backend_by_name(backend),
        **{name: to(backend, data) if isinstance(data, np.ndarray) else data for name, data in logits.items()},
    )
    return view, step


def by_definition(view: CacheView, step: Step) -> Any:
    """Column sums, written with a softmax over the rows and the sink of each query."""
    keys, queries, valid, sees = (
        np.asarray(data) for data in (view.keys, step.queries, step.query_valid, step.asked.sees)
    )
    count = np.asarray(view.columns["count"].data)
    mass = np.zeros((BATCH, HEADS, TOKENS))
    for b, hq, i in np.ndindex(BATCH, HEADS * GROUPS, TOKENS):
        h = hq // GROUPS
        rows = [n for n in range(TOKENS) if valid[b, n] and n <= sees[b, i]]
        if not valid[b, i] or not rows:
            continue
        logits = step.scale * keys[b, h, rows] @ queries[b, hq, i]
        if step.softcap is not None:
            logits = step.softcap * np.tanh(logits / step.softcap)
        if step.count_bias:
            logits = logits + np.log(count[b, h, rows])
        power = np.exp(logits)
        sink = 0.0 if step.sinks is None else np.exp(np.asarray(step.sinks)[hq])
        mass[b, h, rows] += power / (power.sum() + sink) / GROUPS
    return mass


def later(rng: Any) -> Any:
    """A last visible token for each query: its own or one further on."""
    own = np.arange(TOKENS)
    return np.maximum(own, rng.integers(0, TOKENS, (BATCH, TOKENS)))


@given(
    st.integers(0, 999),
    st.sampled_from(BACKENDS),
    st.sampled_from([None, 0.5, 3.0]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 1 << 22]),
)
def test_attention_mass_follows(
    seed: int, backend: str, softcap: float | None, sinks: bool, reach: bool, bias: bool, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    view, step = scene(
        backend,
        seed,
        softcap=softcap,
        sinks=2 * rng.standard_normal(HEADS * GROUPS) if sinks else None,
        query_reach=later(rng) if reach else None,
        count_bias=bias,
    )
    ops = TorchBackend(chunk_elements=chunk) if backend == "torch" else step.ops
    np.testing.assert_allclose(np.asarray(ops.attention_mass(view, step)), by_definition(view, step), atol=1e-12)


@BOTH
def test_sinks_do_not_change_how_the_rows_compare(backend: str) -> None:
    """Which rows get half of the most that a query pays is decided among rows."""
    view, step = scene(backend, 3)
    taken = replace(step, sinks=to(backend, np.full(HEADS * GROUPS, 5.0)))
    counted = [np.asarray(step.ops.attention_mass(view, each, above=0.5)) for each in (step, taken)]
    np.testing.assert_array_equal(*counted)


@BOTH
def test_a_sink_beyond_all_rows_leaves_them_nothing(backend: str) -> None:
    view, step = scene(backend, 4, sinks=np.full(HEADS * GROUPS, 1e4))
    mass = np.asarray(step.ops.attention_mass(view, step))
    assert np.isfinite(mass).all()
    assert not mass.any()


@BOTH
def test_the_latest_queries_keep_what_they_see(backend: str) -> None:
    reach = np.array([[4, 4, 4, 4, 4, 5, 6], [6, 6, 6, 6, 6, 6, 6]])
    _, step = scene(backend, 5, query_reach=reach, softcap=2.0)
    valid = np.asarray(step.query_valid)
    latest = step.latest(3)
    assert latest.softcap == 2.0
    for b in range(BATCH):
        assert np.asarray(latest.asked.sees)[b].tolist() == reach[b][valid[b]][-3:].tolist()


@BOTH
@pytest.mark.parametrize("first", [True, False], ids=["an image first", "an image last"])
def test_queries_of_two_passes_keep_what_they_see(backend: str, first: bool) -> None:
    """Where one pass has an image and the other has none."""
    reach = np.full((BATCH, TOKENS), TOKENS - 1)
    _, seeing = scene(backend, 6, query_reach=reach)
    _, causal = scene(backend, 7)
    one, other = (seeing, causal) if first else (causal, seeing)
    both = one.asked.followed_by(other.asked)
    own = np.broadcast_to(np.arange(TOKENS), reach.shape)
    np.testing.assert_array_equal(
        np.asarray(both.sees), np.concatenate([reach, own] if first else [own, reach], axis=1)
    )
    assert causal.asked.followed_by(causal.asked).reach is None


# Through a session --------------------------------------------------------------------------------------------------


def run(backend: str, policy: Policy, **logits: Any) -> Session:
    """The prompt of a scene, with its caps and sinks given to the session; the pass knows how far tokens see."""
    view, step = scene(backend, 8, **logits)
    session = Session(policy, backend_by_name(backend), 1)
    valid = np.asarray(step.query_valid)
    now = Pass(0, step.query_positions, step.query_valid, valid.sum(axis=1), {}, step.query_reach)
    session.append(0, view.keys, view.values, now)
    session.advance(0, step.queries, step.scale, now, softcap=step.softcap, sinks=step.sinks)
    return session


@BOTH
def test_a_scorer_is_told(backend: str) -> None:
    logits = {"softcap": 1.5, "sinks": np.ones(HEADS * GROUPS), "query_reach": later(np.random.default_rng(1))}
    session = run(backend, h2o(keep=1.0), **logits)
    view, step = scene(backend, 8, **logits)
    view = replace(view, columns={"count": Column(to(backend, np.ones(view.shape, np.float32)))})
    mass = np.asarray(session._layers[0].store.view().columns["mass"].data)
    np.testing.assert_allclose(mass, by_definition(view, step), atol=1e-6)


@BOTH
def test_the_mean_is_over_the_queries_that_see_a_row(backend: str) -> None:
    """With a reach to the end every query sees every row, so that all divisors are equal."""
    reach = np.full((BATCH, TOKENS), TOKENS - 1)
    pipeline = Pipeline(schedule=KeepRatio(1.0), score=AttentionMass(reduce="mean"))
    session = run(backend, Policy(prefill=pipeline, decode=pipeline), query_reach=reach)
    view = session._layers[0].store.view()
    asked = np.asarray(view.columns["asked"].data)
    valid = np.asarray(view.valid)
    assert all(set(asked[b][valid[b]].tolist()) == {valid[b, 0].sum()} for b in range(BATCH))


@BOTH
def test_queries_that_wait_go_with_their_batch_row(backend: str) -> None:
    watch = Watch(TOKENS, 1)
    policy = Policy(decode=Pipeline(schedule=watch, score=watch))
    reach = np.array([[4, 4, 4, 4, 4, 5, 6], [6, 6, 6, 6, 6, 6, 6]])
    session = run(backend, policy, query_reach=reach)
    before = session._layers[0].queries
    assert before is not None
    session.select_batch(to(backend, np.array([1, 0])))
    after = session._layers[0].queries
    assert after is not None
    np.testing.assert_array_equal(np.asarray(after.sees), np.asarray(before.sees)[[1, 0]])


# Stages that reason with logits -------------------------------------------------------------------------------------


def stay(x: Any, by: Any) -> Any:
    """A rotary embedding that turns nothing."""
    return x


@BOTH
def test_expected_attention_counts_sinks(backend: str) -> None:
    view, step = scene(backend, 9)
    step = replace(step, rotate=stay)
    scorer = ExpectedAttention(window=4, future=2)
    without = np.asarray(scorer.score(view, step))
    tiny = scorer.score(view, replace(step, sinks=to(backend, np.full(HEADS * GROUPS, -1e4))))
    np.testing.assert_allclose(np.asarray(tiny), without)
    taking = np.asarray(scorer.score(view, replace(step, sinks=to(backend, np.full(HEADS * GROUPS, 3.0)))))
    valid = np.asarray(view.valid)
    assert (taking[valid] < without[valid]).all()


@BOTH
def test_expected_attention_refuses_capped_logits(backend: str) -> None:
    view, step = scene(backend, 10, softcap=30.0)
    with pytest.raises(UnsupportedModelError, match=r"ExpectedAttention.*softcap=30.0.*Hint"):
        ExpectedAttention().score(view, replace(step, rotate=stay))


@BOTH
def test_keep_kv_refuses_capped_logits(backend: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"ZeroPerturbation.*softcap=30.0.*Hint"):
        run(backend, keep_kv(rows=4), softcap=30.0)
