"""Re-indexed positions: attention as if the rows that are left had arrived one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from custom_stages import ByHead, Loudness, Recall, Wide, both
from driving import Arr, PassTrace, Request, drive, feed, make_request, requests, rotary, same_tables, to
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import (
    AttentionMass,
    CacheError,
    FixedRows,
    Fold,
    KeepRatio,
    Mean,
    NearestPosition,
    Pipeline,
    Policy,
    PolicyError,
    Recency,
    Session,
    TopK,
    backend_by_name,
    streaming_llm,
)

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])
BACKENDS = st.sampled_from(["numpy", "torch"])


def in_slots(policy: Policy) -> Policy:
    return Policy(prefill=policy.prefill, decode=policy.decode, count_bias=policy.count_bias, positions="slots")


def turned(vector: Arr, by: int) -> Arr:
    """One vector turned by so many positions, pair by pair of its two halves."""
    half = len(vector) // 2
    out = vector.copy()
    for i in range(half):
        angle = by * 10000.0 ** (-i / half)
        x, y = vector[i], vector[half + i]
        out[i], out[half + i] = x * np.cos(angle) - y * np.sin(angle), y * np.cos(angle) + x * np.sin(angle)
    return out


def by_slots(request: Request, done: PassTrace, before: Any, layer: int, b: int, start: int, length: int) -> None:
    """What a pass gave, against attention over rows numbered 0, 1, 2, ... in the order in which they arrived.

    ``before`` are the tables [layer][batch row][head] that the pass found.
    """
    heads = request.keys.shape[2]
    group = request.queries.shape[2] // heads
    for hq in range(request.queries.shape[2]):
        h = hq // group
        old = before[layer][b][h] if before else None
        rows = [] if old is None else list(zip(old.positions, old.keys, old.values, strict=True))
        for p in range(max(start, request.left[b]), start + length):
            rows.append((p, request.keys[layer, b, h, p], request.values[layer, b, h, p]))
            here = len(rows) - 1
            query = turned(request.queries[layer, b, hq, p], here - p)
            logits = np.array([request.scale * query @ turned(key, slot - q) for slot, (q, key, _) in enumerate(rows)])
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            due = sum(share * value for share, (_, _, value) in zip(shares, rows, strict=True))
            np.testing.assert_allclose(done.outputs[layer, b, hq, p - start], due, rtol=1e-9, atol=1e-9)


def check(policy: Policy, request: Request, backend: str, lengths: tuple[int, ...], **settings: Any) -> Session:
    session = Session(policy, backend_by_name(backend), len(request.keys), rotate=rotary, **settings)
    before: Any = None
    start = 0
    for length in lengths:
        done = feed(session, request, start, length)
        for layer, b in np.ndindex(*request.keys.shape[:2]):
            by_slots(request, done, before, layer, b, start, length)
        before, start = done.tables, start + length
    return session


POLICIES = [
    streaming_llm(rows=6, sinks=2),
    both(5, AttentionMass()),
    both(5, Loudness(), allocate=ByHead(((2, -2),) * 2)),
    both(5, Loudness(), merge=Fold(NearestPosition(), Mean())),
    both(4, Recency(), recall=Recall(lambda archive, step: archive.positions % 3 == 0), select=TopK(first=2)),
]
NAMES = ["streaming", "mass", "ragged", "merged", "recalled"]


@BOTH
@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
@pytest.mark.parametrize("padding", [(0, 0), (5, 2)])
def test_attention_is_that_over_rows_numbered_anew(backend: str, policy: Policy, padding: tuple[int, ...]) -> None:
    request = make_request(layers=2, batch=2, heads=2, groups=2, dim=6, prompt=12, steps=9, padding=padding)
    check(in_slots(policy), request, backend, (12, 1, 1, 1, 4, 1, 1))


@given(
    requests(max_batch=2, max_prompt=14, max_steps=6, padded=True, even=True),
    BACKENDS,
    st.integers(1, 8),
)
def test_of_requests_of_every_shape(request_: Request, backend: str, rows: int) -> None:
    policy = in_slots(both(rows, AttentionMass()))
    check(policy, request_, backend, (request_.prompt, *(1,) * (request_.tokens - request_.prompt)))


@BOTH
def test_a_prompt_in_chunks(backend: str) -> None:
    request = make_request(layers=2, batch=2, dim=4, prompt=14, steps=2, padding=(0, 6))
    policy = in_slots(streaming_llm(rows=5, sinks=1))
    session = check(policy, request, backend, (3, 2, 9, 1, 1), prompt_length=14)
    whole = drive(policy, request, backend=backend, rotate=rotary)
    again = drive(policy, request, backend=backend, rotate=rotary, chunks=(3, 2, 9))
    same_tables(again.passes[-1], whole.passes[-1], tolerance=1e-12)
    assert session.report().evicted == whole.session.report().evicted


@BOTH
def test_stored_keys_stay_where_they_arrived(backend: str) -> None:
    request = make_request(layers=1, prompt=10, steps=6, dim=4)
    trace = drive(in_slots(streaming_llm(rows=5, sinks=2)), request, backend=backend, rotate=rotary)
    for table in trace.passes[-1].tables[0][0]:
        assert table.positions == [0, 1, 13, 14, 15]
    for h, table in enumerate(trace.passes[-1].tables[0][0]):
        assert table.keys.tolist() == request.keys[0, 0, h, table.positions].tolist()


@BOTH
def test_nothing_is_turned_until_something_has_left(backend: str) -> None:
    calls: list[Any] = []

    def watching(x: Any, by: Any) -> Any:
        calls.append(np.asarray(by).any())
        return rotary(x, by)

    request = make_request(prompt=6, steps=4, dim=4)
    policy = in_slots(streaming_llm(rows=8, sinks=2))
    traces = [
        drive(policy, request, backend=backend, rotate=watching),
        drive(streaming_llm(rows=8, sinks=2), request, backend=backend),
    ]
    for slots, original in zip(*(trace.passes[:3] for trace in traces), strict=True):
        np.testing.assert_allclose(slots.outputs, original.outputs, rtol=1e-12, atol=1e-12)
    assert calls
    # Nine rows are attended to before the ninth leaves: the first that stand elsewhere meet the tenth token.
    assert calls.index(True) == 2 * 4


@BOTH
def test_scores_are_those_of_the_attention_that_was_paid(backend: str) -> None:
    """The mass of all rows, kept or gone, is one a query: what was observed are the turned keys and queries."""
    request = make_request(prompt=9, steps=5, dim=4)
    policy = in_slots(both(4, AttentionMass()))
    session = Session(policy, backend_by_name(backend), 1, rotate=rotary)
    before: Any = None
    start = 0
    for length in (9, 1, 1, 1, 1, 1):
        done = feed(session, request, start, length)
        if before is not None:
            for h, table in enumerate(before[0][0]):
                rows = [*table.positions, start]
                keys = [*table.keys, request.keys[0, 0, h, start]]
                query = turned(request.queries[0, 0, h, start], len(rows) - 1 - start)
                logits = [
                    request.scale * query @ turned(key, s - p)
                    for s, (p, key) in enumerate(zip(rows, keys, strict=True))
                ]
                shares = np.exp(logits) / np.exp(logits).sum()
                mass = dict(zip(rows, shares + np.append(table.columns["mass"], 0), strict=True))
                after = done.tables[0][0][h]
                np.testing.assert_allclose(
                    after.columns["mass"], [mass[p] for p in after.positions], rtol=1e-9, atol=1e-12
                )
        before, start = done.tables, start + length


@BOTH
def test_beams(backend: str) -> None:
    request = make_request(batch=2, prompt=9, steps=4, dim=4, padding=(0, 4))
    policy = in_slots(streaming_llm(rows=5, sinks=1))
    session = Session(policy, backend_by_name(backend), 1, rotate=rotary)
    before = [feed(session, request, start, n) for start, n in ((0, 9), (9, 1), (10, 1))][-1].tables
    session.select_batch(to(backend, np.array([1, 1])))
    arrays = (data[:, [1, 1]] for data in (request.queries, request.keys, request.values))
    chosen = Request(*arrays, request.prompt, request.scale, (4, 4))
    done = feed(session, chosen, 11, 1)
    for b in range(2):
        by_slots(chosen, done, [[before[0][1]] * 2], 0, b, 11, 1)


@BOTH
def test_a_scorer_sees_what_came_back_numbered_too(backend: str) -> None:
    paid: list[Any] = []

    class PaidNow:
        def score(self, view: Any, step: Any) -> Any:
            mass = step.ops.attention_mass(view, step.latest(1))
            host = step.ops.host
            paid.append(
                [dict(zip(p, m, strict=True)) for p, m in zip(host(view.positions)[0], host(mass)[0], strict=True)]
            )
            return mass

    request = make_request(prompt=8, steps=1, dim=4)
    stages = {"score": Recency(), "recall": Recall(lambda archive, step: archive.positions % 2 == 1)}
    prefill = Pipeline(schedule=FixedRows(3), **stages)
    decode = Pipeline(schedule=FixedRows(3), **{**stages, "score": PaidNow()})
    drive(Policy(prefill=prefill, decode=decode, positions="slots"), request, backend=backend, rotate=rotary)
    rows = [1, 3, 5, 6, 7, 8]
    for h in range(2):
        query = turned(request.queries[0, 0, h, 8], 5 - 8)
        keys = [turned(request.keys[0, 0, h, p], slot - p) for slot, p in enumerate(rows)]
        shares = np.exp([request.scale * query @ key for key in keys])
        due = dict(zip(rows, shares / shares.sum(), strict=True))
        assert {p: m for p, m in paid[0][h].items() if p >= 0} == pytest.approx(due, rel=1e-9)


class TestRefusals:
    def test_without_a_rotary_embedding(self) -> None:
        with pytest.raises(CacheError, match=r"positions='slots'.*rotary"):
            Session(in_slots(streaming_llm(rows=8)), backend_by_name("torch"), 1)
        Session(streaming_llm(rows=8), backend_by_name("torch"), 1, rotate=rotary)

    def test_a_window_while_decoding(self) -> None:
        stage = Pipeline(schedule=FixedRows(4), score=Wide(3))
        with pytest.raises(PolicyError, match=r"Wide\(window=3\) looks at 3 queries.*slots"):
            Policy(decode=stage, positions="slots")
        with pytest.raises(PolicyError, match="decode"):
            Policy(prefill=stage, decode=stage, positions="slots")
        Policy(prefill=stage, positions="slots")  # all queries of a prompt stand in its slots
        Policy(decode=Pipeline(schedule=FixedRows(4), score=Wide(1)), positions="slots")
        Policy(decode=stage)

    @pytest.mark.parametrize("value", ["slot", "Slots", None, True, 0])
    def test_a_choice_that_there_is_not(self, value: Any) -> None:
        with pytest.raises(PolicyError, match="positions="):
            Policy(positions=value)


def test_the_stage_is_given_the_rotation() -> None:
    seen: list[Any] = []

    class Looking:
        def score(self, view: Any, step: Any) -> Any:
            seen.append(step.rotate)
            return Recency().score(view, step)

    request = make_request(prompt=6, steps=0, dim=4)
    policy = Policy(prefill=Pipeline(schedule=KeepRatio(0.5), score=Looking()))
    drive(policy, request, rotate=rotary)
    drive(policy, request)
    assert seen == [rotary, None]
    x = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    back = rotary(rotary(x, torch.tensor([[[5, 0, -7]]])), torch.tensor([[[-5, 0, 7]]]))
    torch.testing.assert_close(back, x)
