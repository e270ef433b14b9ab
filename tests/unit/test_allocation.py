"""Budgets over the whole model and scores across layers: who waits, what is exact, and when nothing happens at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from custom_stages import ByHead, ByLayer, LayerMean, Loudness, both, loudest, sizes
from driving import Request, drive, feed, make_request, requests, same_tables
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import (
    AttentionMass,
    CacheView,
    FixedRows,
    HeadTable,
    KeepRatio,
    LikePrompt,
    Pipeline,
    PlanError,
    Policy,
    Recency,
    Scored,
    Session,
    Step,
    backend_by_name,
)

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])
BACKENDS = st.sampled_from(["numpy", "torch"])


@dataclass(frozen=True)
class Told:
    """An allocator of one kind that notes what it was told."""

    inner: Any
    notes: Any  # a list

    @property
    def whole_model(self) -> bool:
        return bool(self.inner.whole_model)

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> Any:
        self.notes.append(([scored.view.layer for scored in layers], [held.tolist() for held in step.held]))
        return self.inner.allocate(budget, layers, step)


@BOTH
class TestWholeModel:
    def test_it_is_told_once_with_every_layer_scored(self, backend: str) -> None:
        notes: list[Any] = []
        request = make_request(layers=3, batch=2, prompt=12, steps=2, padding=(0, 3))
        trace = drive(both(5, allocate=Told(ByLayer((3, 0, -3)), notes)), request, backend=backend)
        assert [layers for layers, _ in notes] == [[0, 1, 2]] * 3
        # All layers have the new token before any of them acts.
        assert notes[0][1] == [[[12, 12], [9, 9]]] * 3
        assert notes[1][1] == notes[2][1] == [[[rows] * 2] * 2 for rows in (9, 6, 3)]
        for number, done in enumerate(trace.passes):
            assert sizes(done) == [[[rows] * 2] * 2 for rows in (8, 5, 2)]
            for layer, b, h in np.ndindex(3, 2, 2):
                due = loudest(request, layer, b, h, 12 + number, (8, 5, 2)[layer])
                assert done.tables[layer][b][h].positions == due

    def test_no_plan_before_the_last_layer_has_attended(self, backend: str) -> None:
        heard: list[int] = []
        session = Session(
            both(4, allocate=ByLayer((1, -1))),
            backend_by_name(backend),
            2,
            listen=lambda layer, view, plan, step: heard.append(layer),
        )
        request = make_request(layers=2, prompt=9, steps=1)
        feed(session, request, 0, 9)
        assert heard == [0, 1]
        feed(session, request, 9, 1)
        assert heard == [0, 1, 0, 1]

    def test_it_knows_the_quotas_of_the_prompt_afterwards(self, backend: str) -> None:
        told: list[Step] = []

        @dataclass(frozen=True)
        class Listening:
            def score(self, view: CacheView, step: Step) -> Any:
                told.append(step)
                return Recency().score(view, step)

        prefill = Pipeline(schedule=FixedRows(4), score=Recency(), allocate=ByLayer((2, -2)))
        decode = Pipeline(schedule=FixedRows(5), score=Listening(), allocate=ByLayer((0, 0)))
        drive(Policy(prefill=prefill, decode=decode), make_request(layers=2, prompt=9, steps=1), backend=backend)
        for step in told:
            assert [quota.tolist() for quota in step.prompt_quota] == [[[6, 6]], [[2, 2]]]
        assert [step.prompt_kept.tolist() for step in told] == [[[6, 6]], [[2, 2]]]
        # The second layer has not run yet when the first is scored.
        assert [[held.tolist() for held in step.held] for step in told] == [
            [[[7, 7]], [[2, 2]]],
            [[[7, 7]], [[3, 3]]],
        ]

    @pytest.mark.parametrize("extra", [(1, 0, 0), (-1, 0, 0), (0, 2, -1)])
    def test_a_wrong_total_is_an_error(self, backend: str, extra: tuple[int, ...]) -> None:
        request = make_request(layers=3, heads=2, prompt=9, steps=0)
        due = 3 * 2 * 4
        with pytest.raises(PlanError, match=rf"ByLayer\(.*handed out \[{due + 2 * sum(extra)}\].*exactly \[{due}\]"):
            drive(both(4, allocate=ByLayer(extra)), request, backend=backend)

    def test_within_the_budget_nothing_is_touched(self, backend: str) -> None:
        """Not even a layer that holds more than its own share, as long as all together hold no more than all may."""
        plans: list[int] = []
        request = make_request(layers=2, prompt=8, steps=2)
        policy = both(9, AttentionMass(), allocate=ByLayer((5, -5)))
        trace, plain = (
            drive(p, request, backend=backend, listen=lambda layer, *_: plans.append(layer))
            for p in (policy, Policy(decode=Pipeline(schedule=FixedRows(99), score=AttentionMass())))
        )
        for done, due in zip(trace.passes[:2], plain.passes, strict=False):
            same_tables(done, due)  # bit for bit
            assert done.outputs.tobytes() == due.outputs.tobytes()
        assert sizes(trace.passes[2]) == [[[10, 10]], [[4, 4]]]  # 10 > 9 on average: the second layer pays
        assert plans == [0, 1]


@BOTH
class TestAhead:
    """Each layer knows its quota alone: nobody waits, and the account is still settled."""

    def test_a_layer_is_planned_as_soon_as_it_has_attended(self, backend: str) -> None:
        heard: list[Any] = []
        session = Session(
            both(4, allocate=ByHead(((2, 0), (-1, -1)))),
            backend_by_name(backend),
            2,
            listen=lambda layer, view, plan, step: heard.append([held.tolist() for held in step.held]),
        )
        request = make_request(layers=2, prompt=9, steps=0)
        done = feed(session, request, 0, 9)
        assert heard == [[[[9, 9]], [[0, 0]]], [[[6, 4]], [[9, 9]]]]  # the second layer's turn: the first has acted
        assert sizes(done) == [[[6, 4]], [[3, 3]]]

    @pytest.mark.parametrize("extra", [((1, 0), (0, 0)), ((0, 0), (0, -1)), ((2, 0), (-1, 0))])
    def test_a_wrong_total_is_an_error(self, backend: str, extra: Any) -> None:
        total = 2 * 2 * 4 + int(np.sum(extra))
        for prompt in (9, 2):  # also where nothing would be evicted
            with pytest.raises(PlanError, match=rf"ByHead\(.*handed out \[{total}\].*exactly \[16\]"):
                drive(both(4, allocate=ByHead(extra)), make_request(layers=2, prompt=prompt, steps=0), backend=backend)

    def test_a_layer_within_its_quota_is_not_even_scored(self, backend: str) -> None:
        scored: list[int] = []

        @dataclass(frozen=True)
        class Noting:
            def score(self, view: CacheView, step: Step) -> Any:
                scored.append(view.layer)
                return Recency().score(view, step)

        policy = both(6, Noting(), allocate=ByHead(((3, 3), (-3, -3))))
        trace = drive(policy, make_request(layers=2, prompt=8, steps=2), backend=backend)
        assert scored == [1, 1, 0, 1]  # 8 rows of 9, then 9, then 10; the second layer at every pass
        assert [sizes(done) for done in trace.passes][-1] == [[[9, 9]], [[3, 3]]]

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (lambda budget: budget, r"shape \(1,\)"),
            (lambda budget: np.full((1, 2), 0.5), "integers"),
            (lambda budget: np.full((1, 2), -1), "integers >= 0"),
            (lambda budget: None, "must be an array"),
            (lambda budget: [[4, 4]], "must be an array"),
        ],
    )
    def test_a_quota_that_is_none_is_refused(self, backend: str, answer: Any, says: str) -> None:
        @dataclass(frozen=True)
        class Wrong:
            whole_model: bool = False

            def ahead(self, budget: Any, layer: int, num_layers: int, heads: int, step: Step) -> Any:
                return answer(budget)

            def allocate(self, budget: Any, layers: Any, step: Step) -> Any:
                raise AssertionError

        with pytest.raises(PlanError, match=f"Wrong at layer 0.*{says}"):
            drive(both(4, allocate=Wrong()), make_request(layers=2, prompt=9, steps=0), backend=backend)


@given(
    requests(max_batch=2, padded=True, max_prompt=16, max_steps=6),
    st.one_of(st.just(KeepRatio(0.5)), st.builds(FixedRows, st.integers(2, 9))),
    st.integers(0, 2),
    BACKENDS,
    st.booleans(),
    st.booleans(),
)
def test_totals_are_exact(request_: Request, schedule: Any, more: int, backend: str, across: bool, check: bool) -> None:
    layers, batch, heads = request_.keys.shape[:3]
    more = more if layers == 2 and isinstance(schedule, FixedRows) else 0  # KeepRatio may have a single row to give
    score: Any = LayerMean(Loudness()) if across else Loudness()
    stage = Pipeline(schedule=schedule, score=score, allocate=ByLayer((more, -more)[:layers]))
    trace = drive(Policy(prefill=stage, decode=stage), request_, backend=backend, check=check)
    counts = np.array(sizes(trace.passes[-1])).sum(axis=(0, 2))
    for b in range(batch):
        tokens = request_.tokens - request_.left[b]
        due = schedule.rows if isinstance(schedule, FixedRows) else max(1, round(tokens / 2))
        assert counts[b] <= layers * heads * due
        if tokens >= due + more:
            assert counts[b] == layers * heads * due


@BOTH
@pytest.mark.parametrize(("weights", "prompt", "held"), [((100.0, 1.0), 8, [8, 0]), ((3.0, 1.0), 6, [6, 2])])
def test_a_layer_that_the_prompt_did_not_fill_keeps_its_share_while_decoding(
    backend: str, weights: tuple[float, float], prompt: int, held: list[int]
) -> None:
    """The first layer may hold the whole prompt, so nothing is planned there; its share is not lost."""
    table = tuple((weight,) for weight in weights)
    prefill = Pipeline(schedule=FixedRows(4), score=Recency(), allocate=HeadTable(table))
    decode = Pipeline(schedule=FixedRows(4), score=Recency(), allocate=LikePrompt())
    request = make_request(layers=2, heads=1, prompt=prompt, steps=3)
    trace = drive(Policy(prefill=prefill, decode=decode), request, backend=backend)
    assert [[len(table[0][0].positions) for table in one.tables] for one in trace.passes] == [held] * 4
