"""One request from its first token to its last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from driving import Request, attend, drive, feed, make_request, only, requests, same_tables, table_of, to
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy import (
    AttentionMass,
    CacheError,
    CacheView,
    FixedPoint,
    FixedRows,
    Fold,
    KeepRatio,
    Mean,
    MemoryBudget,
    NearestPosition,
    Pass,
    Phase,
    Pipeline,
    Plan,
    Policy,
    Recency,
    Scored,
    Selection,
    Session,
    Step,
    TopK,
    ada_kv,
    adore,
    backend_by_name,
    d2o,
    elastic_cache,
    full,
    h2o,
    keep_kv,
    snapkv,
    streaming_llm,
    tova,
)

BY_MEMORY = streaming_llm(memory=10_000, sinks=2)  # a budget of the whole batch: it shrinks when the batch grows
RECIPES = [
    elastic_cache(keep=0.4, distance=2),
    elastic_cache(rows=7, first=2, last=3),
    h2o(keep=0.3),
    h2o(rows=5, recent=0.2),
    streaming_llm(keep=0.5, sinks=2),
    BY_MEMORY,
    full(),
    tova(rows=6),  # a window of one query
    snapkv(rows=9, window=4),  # and of several
    adore(rows=6, recall=3),  # an archive
    d2o(rows=9),  # a whole-model allocator, registers
    ada_kv(rows=6, window=3),  # ragged heads
    keep_kv(rows=6),  # counts in the attention
]
POLICIES = st.sampled_from(RECIPES)


@dataclass(frozen=True)
class Pyramid:
    """The first layer gets most: shares fall linearly, rounded by largest remainder, the heads of a layer alike."""

    whole_model: bool = True

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        heads = layers[0].view.shape[1]
        wish = np.arange(len(layers), 0, -1) / (len(layers) * (len(layers) + 1) / 2)
        exact = wish[:, None] * (budget * len(layers))
        rows = np.floor(exact).astype(np.int64)
        for b, total in enumerate(budget * len(layers)):
            for layer in np.argsort(-(exact - rows)[:, b], kind="stable")[: total - rows[:, b].sum()]:
                rows[layer, b] += 1
        return [np.repeat(layer[:, None], heads, axis=1) for layer in rows]


def held(trace: Any, number: int) -> list[list[int]]:
    """Rows of each layer and batch row after a pass; all heads alike."""
    out = []
    for layer in trace.passes[number].tables:
        for heads in layer:
            assert len({len(table.positions) for table in heads}) == 1
        out.append([len(heads[0].positions) for heads in layer])
    return out


@pytest.mark.parametrize("backend", ["numpy", "torch"])
class TestWholeModel:
    def test_layers_get_their_shares_of_an_exact_total(self, backend: str) -> None:
        pipeline = Pipeline(schedule=FixedRows(5), score=Recency(), allocate=Pyramid())
        request = make_request(layers=3, batch=2, prompt=20, steps=4, padding=(0, 3))
        trace = drive(Policy(prefill=pipeline, decode=pipeline), request, backend=backend)
        for number in range(5):
            assert held(trace, number) == [[8, 8], [5, 5], [2, 2]]  # 7.5, 5, 2.5 of 15
            newest = 19 + number
            assert trace.passes[number].tables[2][1][0].positions == [newest - 1, newest]
        assert trace.session.report().exceeded == 0

    def test_a_layer_that_has_less_than_its_share_keeps_all(self, backend: str) -> None:
        pipeline = Pipeline(schedule=FixedRows(8), score=Recency(), allocate=Pyramid())
        request = make_request(layers=3, prompt=10, steps=2)
        trace = drive(Policy(prefill=pipeline, decode=pipeline), request, backend=backend)
        assert [held(trace, number) for number in range(3)] == [
            [[10], [8], [4]],
            [[11], [8], [4]],
            [[12], [8], [4]],
        ]

    def test_decode_knows_what_each_layer_kept_of_the_prompt(self, backend: str) -> None:
        prefill = Pipeline(schedule=FixedRows(6), score=Recency(), allocate=Pyramid())
        decode = replace(prefill, score=FixedPoint(distance=2, first=0))
        request = make_request(layers=2, prompt=20, steps=3)
        trace = drive(Policy(prefill=prefill, decode=decode), request, backend=backend)
        # 8 and 4 rows; the oldest 6 and 2 are frozen, and 2 places are left for the latest.
        assert trace.passes[0].tables[0][0][0].positions == list(range(12, 20))
        assert trace.passes[0].tables[1][0][0].positions == list(range(16, 20))
        assert trace.passes[3].tables[0][0][0].positions == [*range(12, 18), 21, 22]
        assert trace.passes[3].tables[1][0][0].positions == [16, 17, 21, 22]

    def test_a_layer_above_its_share_is_left_alone_while_the_total_is_within_the_budget(self, backend: str) -> None:
        planned: list[int] = []
        prefill, decode = (Pipeline(schedule=FixedRows(n), score=Recency(), allocate=Pyramid()) for n in (5, 7))
        request = make_request(layers=3, prompt=20, steps=2)
        told = drive(
            Policy(prefill=prefill, decode=decode),
            request,
            backend=backend,
            listen=lambda layer, *_: planned.append(layer),
        )
        assert planned == [0, 1, 2]  # in the prompt; 10 + 7 + 4 rows are no more than 21
        assert held(told, 2) == [[10], [7], [4]]

    def test_nothing_happens_before_the_last_layer_has_attended(self, backend: str) -> None:
        seen: list[tuple[int, int]] = []
        pipeline = Pipeline(schedule=FixedRows(5), score=Recency(), allocate=Pyramid())
        request = make_request(layers=3, prompt=12, steps=1)
        session = Session(
            Policy(prefill=pipeline),
            backend_by_name(backend),
            3,
            listen=lambda layer, view, plan, step: seen.append((layer, view.shape[2])),
        )
        feed(session, request, 0, 12)
        assert seen == [(0, 12), (1, 12), (2, 12)]


class TestReport:
    @given(requests(max_batch=3, padded=True, max_prompt=20), POLICIES, st.sampled_from(["numpy", "torch"]))
    def test_rows_are_conserved(self, request_: Request, policy: Policy, backend: str) -> None:
        trace = drive(policy, request_, backend=backend)
        report = trace.session.report()
        batch, heads = request_.keys.shape[1:3]
        tokens = [request_.tokens - left for left in request_.left]
        assert report.tokens == tuple(tokens)
        assert report.backend == backend
        assert report.policy == policy
        for layer, tables in zip(report.layers, trace.passes[-1].tables, strict=True):
            rows = [len(table.positions) for row in tables for table in row]
            assert layer.rows * batch * heads == pytest.approx(sum(rows), abs=1e-9)
            assert layer.most == max(rows)
            assert sum(rows) + layer.evicted + layer.merged == sum(tokens) * heads
            per_row = (request_.keys.shape[-1] + request_.values.shape[-1]) * 8
            assert layer.full_kv_bytes == batch * heads * request_.tokens * per_row
            assert layer.kv_bytes == batch * heads * layer.capacity * per_row
        if policy == full():
            assert (report.evicted, report.merged) == (0, 0)

    def test_what_went_where(self) -> None:
        request = make_request(layers=2, heads=3, prompt=20, steps=5)
        report = drive(elastic_cache(rows=6), request).session.report()
        for layer in report.layers:
            assert (layer.rows, layer.most, layer.exceeded) == (6.0, 6, 0)
            assert layer.merged == 3 * (20 - 6)
            assert layer.evicted == 3 * 5
            assert layer.capacity == 7
        assert (report.merged, report.evicted) == (2 * 42, 2 * 15)
        assert report.kv_bytes == sum(layer.kv_bytes for layer in report.layers)
        assert report.full_kv_bytes == 2 * 3 * 25 * (4 + 4) * 8
        assert f"{7 / 25:.1%} of full" in str(report)
        assert "FixedRows(rows=6)" in str(report)

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    @pytest.mark.parametrize("targets", [1, 2])
    def test_a_row_is_merged_whichever_of_its_targets_it_folds_into(self, backend: str, targets: int) -> None:
        class LastOnly:
            def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
                view, keep, xp = scored.view, selection.keep, scored.view.xp
                none = xp.full_like(view.positions, -1)
                first = xp.where(view.valid & ~keep, xp.zeros_like(none), none)
                into = xp.stack([*[none] * (targets - 1), first], axis=-1)
                weight = xp.zeros(into.shape, dtype=xp.float64)
                return Plan(keep, into=into, weight=weight, self_weight=weight[..., 0] + 1)

        stages: dict[str, Any] = {"score": Recency(), "select": TopK(first=1), "merge": LastOnly()}
        policy = Policy(prefill=Pipeline(schedule=FixedRows(4), **stages))
        report = drive(policy, make_request(prompt=10, steps=0), backend=backend).session.report()
        assert (report.merged, report.evicted) == (2 * 6, 0)

    def test_protected_rows_above_the_budget_are_counted(self) -> None:
        request = make_request(prompt=10, steps=0, heads=3)
        trace = drive(elastic_cache(keep=0.1, first=2, last=2), request)
        report = trace.session.report()
        assert trace.passes[0].tables[0][0][0].positions == [0, 1, 8, 9]
        assert report.exceeded == 3 * (4 - 1)
        assert f"{report.exceeded} protected rows are held above the budget" in str(report)

    def test_before_anything_happened(self) -> None:
        report = Session(full(), backend_by_name("torch"), 2).report()
        assert (report.tokens, report.kv_bytes, report.evicted) == ((), 0, 0)
        assert "tokens seen 0" in str(report)

    @pytest.mark.parametrize("prompt", [4, 19, 21, 24, 25, 60])
    @pytest.mark.parametrize("recipe", [h2o, streaming_llm, elastic_cache])
    def test_storage_stays_within_a_memory_budget(self, recipe: Any, prompt: int) -> None:
        request = make_request(layers=2, batch=2, heads=2, dim=4, prompt=prompt, steps=30)
        memory = 21 * 2 * 2 * 2 * (4 + 4) * 8 + 5
        session = Session(recipe(memory=memory), backend_by_name("torch"), 2)
        start = 0
        for length in (prompt, *(1,) * 20, 3, 1, 6):  # with further turns of several tokens
            feed(session, request, start, length)
            start += length
            assert session.report().kv_bytes <= memory
        assert session.report().layers[0].most == 20
        assert MemoryBudget(memory).memory == memory


class TestSelection:
    @given(
        st.integers(0, 2**16),
        st.integers(1, 14),
        st.integers(0, 4),
        st.integers(0, 4),
        st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        st.sampled_from(["numpy", "torch"]),
    )
    def test_protected_rows_then_the_best(
        self, seed: int, quota: int, first: int, last: int, recent: float, backend: str
    ) -> None:
        request = make_request(seed=seed, prompt=12, steps=0, batch=2, padding=(0, 3), value_dim=1)
        stage = Pipeline(
            schedule=FixedRows(quota), score=Loudness(), select=TopK(first=first, last=last, recent=recent)
        )
        trace = drive(Policy(prefill=stage), request, backend=backend)
        window = max(last, min(int(recent * quota), quota - first))
        exceeded = 0
        for b, h in np.ndindex(2, 2):
            rows = list(range(request.padding[b], 12))
            stay = set(rows[:first]) | set(rows[max(0, len(rows) - window) :])
            others = sorted(set(rows) - stay, key=lambda p, b=b, h=h: -request.values[0, b, h, p, 0])
            due = sorted(stay | set(others[: max(0, quota - len(stay))]))
            if len(rows) <= quota:
                due = rows
            assert trace.passes[0].tables[0][b][h].positions == due
            exceeded += max(0, len(due) - quota)
        assert trace.session.report().exceeded == exceeded


@dataclass(frozen=True)
class Loudness:
    """The value itself."""

    def score(self, view: CacheView, step: Step) -> Any:
        return view.values[..., 0]


class TestIsolation:
    @given(POLICIES, st.integers(0, 2**16), st.booleans())
    def test_a_cleared_session_is_a_fresh_one(self, policy: Policy, seed: int, shorter: bool) -> None:
        one = make_request(seed=seed, layers=2, batch=2, prompt=15, steps=3, padding=(0, 4))
        two = make_request(seed=seed + 1, layers=2, batch=1 if shorter else 3, heads=3, prompt=9, steps=4)
        session = drive(policy, one).session
        session.clear()
        assert session.report().kv_bytes == 0
        assert session.length() == session.batch == 0
        again, fresh = drive(policy, two, session=session), drive(policy, two)
        for a, b in zip(again.passes, fresh.passes, strict=True):
            same_tables(a, b)
            assert a.outputs.tobytes() == b.outputs.tobytes()
        assert again.session.report() == fresh.session.report()

    @given(POLICIES, st.integers(0, 2**16))
    def test_two_requests_under_one_policy_do_not_meet(self, policy: Policy, seed: int) -> None:
        first, second = (make_request(seed=seed + i, layers=2, prompt=9 + i, steps=4 - i) for i in range(2))
        sessions = [Session(policy, backend_by_name("torch"), 2) for _ in range(2)]
        starts = [0, 0]
        done: list[Any] = [None, None]
        for lengths in ((9, 10), (1, 1), (1, 1)):
            for i, request in enumerate((first, second)):
                done[i] = feed(sessions[i], request, starts[i], lengths[i])
                starts[i] += lengths[i]
        for i, request in enumerate((first, second)):
            same_tables(done[i], drive(policy, request).passes[2])

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    @pytest.mark.parametrize("cleared", [False, True])
    def test_batch_rows_chosen_before_the_first_token_change_nothing(self, backend: str, cleared: bool) -> None:
        policy, request = adore(rows=6, recall=3), make_request(batch=2, prompt=12, steps=2, padding=(0, 3))
        session, fresh = (Session(policy, backend_by_name(backend), 1) for _ in range(2))
        if cleared:
            feed(session, make_request(batch=3, prompt=9, steps=0), 0, 9)
            session.clear()
        session.select_batch(to(backend, np.array([2, 0, 0])))
        assert (session.batch, session.length()) == (0, 0)
        for start, length in ((0, 12), (12, 1), (13, 1)):
            same_tables(feed(session, request, start, length), feed(fresh, request, start, length))

    def test_a_cleared_session_forgets_layers_that_waited(self) -> None:
        pipeline = Pipeline(schedule=FixedRows(4), score=Recency(), allocate=Pyramid())
        request = make_request(layers=2, prompt=9, steps=1)
        session = Session(Policy(prefill=pipeline), backend_by_name("torch"), 2)
        whole = np.s_[0, :, :, :9]
        positions = np.arange(9)[None]
        now = Pass(0, to("torch", positions), to("torch", positions >= 0), np.array([9]), {})
        session.append(0, to("torch", request.keys[whole]), to("torch", request.values[whole]), now)
        session.advance(0, to("torch", request.queries[whole]), 1.0, now)
        session.clear()
        assert held(drive(session.policy, request, session=session), 0) == [[5], [3]]

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    @pytest.mark.parametrize("policy", [policy for policy in RECIPES if policy != BY_MEMORY], ids=repr)
    def test_beams_take_everything_of_their_row_along(self, backend: str, policy: Policy) -> None:
        request = make_request(layers=2, batch=3, prompt=11, steps=4, padding=(0, 5, 2))
        index = [2, 0, 2, 1]
        chosen = Request(
            *(data[:, index] for data in (request.queries, request.keys, request.values)),
            prompt=request.prompt,
            scale=request.scale,
            padding=tuple(request.padding[b] for b in index),
        )
        session = Session(policy, backend_by_name(backend), 2)
        feed(session, request, 0, 11)
        feed(session, request, 11, 1)
        session.select_batch(to(backend, np.array(index)))
        assert session.batch == 4
        due = drive(policy, chosen, backend=backend)
        for start in (12, 13):
            done = feed(session, chosen, start, 1)
            for b in range(4):
                same_tables(only(done, b, 1), only(due.passes[start - 10], b, 1), tolerance=1e-12)


class TestObservers:
    @staticmethod
    def brute_force(policy: Policy, request: Request, backend: str, dtype: str) -> None:
        """Mass of each row is what every query so far has paid it, whatever became of other rows in between."""
        session = Session(policy, backend_by_name(backend), len(request.keys))
        host = session.ops.host
        layers, batch, heads = request.keys.shape[:3]
        group = request.queries.shape[2] // heads
        paid: dict[tuple[int, int, int, int], float] = {}
        start = 0
        for length in (request.prompt, *(1,) * (request.tokens - request.prompt)):
            now = np.s_[start : start + length]
            positions = np.broadcast_to(np.arange(start, start + length), (batch, length))
            valid = positions >= np.array(request.left)[:, None]
            step = Pass(start, to(backend, positions), to(backend, valid), valid.sum(axis=1), {})
            for layer in range(layers):
                queries = request.queries[layer][:, :, now]
                keys, values = (to(backend, data[layer][:, :, now], dtype) for data in (request.keys, request.values))
                view = session.append(layer, keys, values, step)
                _, shares = attend(view, queries, positions, request.scale, host)
                shares = shares * valid[:, None, :, None]
                for b, h in np.ndindex(batch, heads):
                    mine = shares[b, h * group : (h + 1) * group].sum(axis=1).mean(axis=0)
                    for n, p in enumerate(host(view.positions)[b, h].tolist()):
                        if host(view.valid)[b, h, n]:
                            paid[layer, b, h, p] = paid.get((layer, b, h, p), 0.0) + float(mine[n])
                session.advance(layer, to(backend, queries, dtype), request.scale, step)
                view = session._layers[layer].store.view()
                for b, h in np.ndindex(batch, heads):
                    table = table_of(view, b, h, host)
                    due = [paid[layer, b, h, p] for p in table.positions]
                    np.testing.assert_allclose(table.columns["mass"], due, rtol=1e-10 if dtype == "float64" else 1e-4)
                    assert table.columns["mass"].dtype != np.float16
            start += length

    @given(requests(max_batch=2, padded=True, max_prompt=10, max_steps=8), st.sampled_from([0.3, 0.6, 1.0]))
    def test_mass_is_what_every_query_has_paid(self, request_: Request, keep: float) -> None:
        self.brute_force(h2o(keep=keep), request_, "torch", "float64")

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_in_every_backend_and_dtype(self, backend: str, dtype: str) -> None:
        self.brute_force(h2o(rows=5), make_request(groups=2, prompt=9, steps=6), backend, dtype)

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_two_scorers_of_one_column_count_the_prompt_once(self, backend: str) -> None:
        policy = Policy(
            prefill=Pipeline(schedule=FixedRows(6), score=AttentionMass(heads="mean")),
            decode=Pipeline(schedule=FixedRows(6), score=AttentionMass()),
        )
        self.brute_force(policy, make_request(prompt=9, steps=4), backend, "float64")

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_what_decode_scores_by_is_observed_in_the_prompt(self, backend: str) -> None:
        policy = Policy(decode=Pipeline(schedule=FixedRows(6), score=AttentionMass()))
        self.brute_force(policy, make_request(prompt=9, steps=4), backend, "float64")

    @pytest.mark.parametrize("together", [True, False])
    def test_equal_scorers_observe_once(self, together: bool) -> None:
        seen: list[int] = []

        @dataclass(frozen=True)
        class Watching:
            name: str

            def score(self, view: CacheView, step: Step) -> Any:
                return view.xp.astype(view.positions, view.xp.float32)

            def observe(self, view: CacheView, step: Step) -> dict[str, Any]:
                seen.append(view.layer)
                return {}

        stages = [Pipeline(schedule=FixedRows(99), score=Watching(n)) for n in ("a", "a" if together else "b")]
        drive(Policy(prefill=stages[0], decode=stages[1]), make_request(layers=2, prompt=5, steps=1))
        assert seen == ([0, 1] if together else [0, 0, 1, 1]) + [0, 1]

    def test_what_a_row_has_received_goes_with_it_when_it_is_folded(self) -> None:
        request = make_request(prompt=10, steps=0)
        merge = Fold(NearestPosition(), Mean())
        policy = Policy(prefill=Pipeline(schedule=FixedRows(3), score=AttentionMass(), merge=merge))
        for table in drive(policy, request).passes[0].tables[0][0]:
            assert table.columns["mass"].sum() == pytest.approx(10)  # every query pays 1
            assert table.columns["count"].sum() == 10

    def test_half_precision_is_summed_in_full(self) -> None:
        request = make_request(prompt=64, steps=8)
        trace = drive(h2o(keep=1.0), request, dtype="float16")
        for table in trace.passes[-1].tables[0][0]:
            assert table.columns["mass"].dtype == np.float32
            assert table.columns["mass"].sum() == pytest.approx(72, rel=1e-5)


class Recorder:
    """A scheduler that notes what it is told and leaves the table alone."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def budget(self, step: Step) -> None:
        self.steps.append(step)


class TestSteps:
    def test_what_a_stage_is_told(self) -> None:
        prefill, decode = Recorder(), Recorder()
        policy = Policy(
            prefill=Pipeline(schedule=prefill, score=Recency()),
            decode=Pipeline(schedule=decode, score=Recency()),
            count_bias=True,
        )
        request = make_request(batch=2, prompt=6, steps=2, padding=(0, 4), groups=3)
        drive(policy, request, chunks=(2, 3, 1))
        (prompt,) = prefill.steps
        assert prompt.phase is Phase.PREFILL
        assert (prompt.seen.tolist(), prompt.prompt.tolist(), prompt.prompt_kept.tolist()) == (
            [6, 2],
            [6, 2],
            [[0, 0]] * 2,
        )
        assert [step.phase for step in decode.steps] == [Phase.DECODE] * 2
        last = decode.steps[-1]
        assert (last.seen.tolist(), last.prompt.tolist(), last.prompt_kept.tolist()) == (
            [8, 4],
            [6, 2],
            [[6, 6], [2, 2]],
        )
        assert [held.tolist() for held in last.held] == [[[8, 8], [4, 4]]]
        assert [quota.tolist() for quota in last.prompt_quota] == [[[0, 0]] * 2]  # nothing was planned
        assert last.query_positions.tolist() == [[7], [7]]
        assert last.queries.shape == (2, 6, 1, 4)
        assert (last.scale, last.count_bias) == (request.scale, True)
        assert last.row_bytes == 2 * 2 * (4 + 4) * 8

    def test_without_the_prompts_length_every_longer_pass_is_a_prompt(self) -> None:
        trace = drive(streaming_llm(rows=4, sinks=1), make_request(prompt=6, steps=2))
        done = feed(trace.session, make_request(prompt=20, steps=0, seed=5), 8, 5)
        assert done.tables[0][0][0].positions == [0, 10, 11, 12]

    def test_a_second_turn_merges_by_the_tokens_that_rows_stand_for(self) -> None:
        policy = Policy(
            prefill=Pipeline(
                schedule=FixedRows(2),
                score=Recency(),
                select=TopK(first=1, last=1),
                merge=Fold(NearestPosition(), Mean()),
            )
        )
        request = make_request(heads=1, prompt=9, steps=0)
        session = Session(policy, backend_by_name("torch"), 1)
        feed(session, request, 0, 5)  # 0, 1, 2 | 3, 4
        done = feed(session, request, 5, 4)  # row 4 (two tokens), 5, 6 and 7 go to 8, but 4 is as near to 0 as to 8
        table = done.tables[0][0][0]
        values = request.values[0, 0, 0]
        assert table.positions == [0, 8]
        assert table.columns["count"].tolist() == [5, 4]
        np.testing.assert_allclose(table.values, [values[:5].mean(axis=0), values[5:].mean(axis=0)], rtol=1e-6)

    def test_a_batch_of_another_size_is_refused(self) -> None:
        session = drive(full(), make_request(batch=2, prompt=4, steps=0)).session
        with pytest.raises(CacheError, match="holds 2 batch rows and was given 3"):
            feed(session, make_request(batch=3, prompt=5, steps=0), 4, 1)

    def test_lengths_are_of_tokens_and_not_of_rows(self) -> None:
        session = drive(h2o(rows=3), make_request(layers=2, prompt=7, steps=4)).session
        assert (session.length(), session.length(1), len(session), session.batch) == (11, 11, 2, 1)

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_all_valid_says_whether_attention_needs_a_mask(self, backend: str) -> None:
        for padding, rows, due in (((0, 0), 9, True), ((0, 3), 9, False), ((0, 3), 4, True)):
            request = make_request(batch=2, prompt=9, steps=0, padding=padding)
            session = drive(streaming_llm(rows=rows, sinks=1), request, backend=backend).session
            assert session.all_valid(0) == due
            view = session._layers[0].store.view()
            assert bool(view.valid.all()) == due

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    @pytest.mark.parametrize("policy", [*RECIPES, elastic_cache(keep=0.1, first=3, last=3)], ids=repr)
    def test_checks_change_nothing(self, backend: str, policy: Policy) -> None:
        # Unchecked, the rows kept are not counted but known: from the quota, what is protected, and what there is.
        request = make_request(layers=2, batch=2, prompt=14, steps=5, padding=(9, 0))
        checked, unchecked = (drive(policy, request, backend=backend, check=check) for check in (True, False))
        for a, b in zip(checked.passes, unchecked.passes, strict=True):
            same_tables(a, b)
        assert checked.session.report() == unchecked.session.report()
        assert checked.session.all_valid(0) == unchecked.session.all_valid(0)

    def test_a_listener_hears_each_plan_before_it_is_carried_out(self) -> None:
        heard: list[tuple[int, int, int, Phase]] = []

        def listen(layer: int, view: CacheView, plan: Plan, step: Step) -> None:
            heard.append((layer, int(view.valid.sum()), int(plan.keep.sum()), step.phase))

        drive(streaming_llm(rows=4, sinks=1), make_request(layers=2, heads=1, prompt=9, steps=1), listen=listen)
        prompt, token = Phase.PREFILL, Phase.DECODE
        assert heard == [(0, 9, 4, prompt), (1, 9, 4, prompt), (0, 5, 4, token), (1, 5, 4, token)]

    def test_only_the_pipeline_of_the_phase_acts(self) -> None:
        request = make_request(prompt=10, steps=4)
        stage = Pipeline(schedule=KeepRatio(0.5), score=Recency())
        before = drive(Policy(prefill=stage), request)
        assert [len(done.tables[0][0][0].positions) for done in before.passes] == [5, 6, 7, 8, 9]
        after = drive(Policy(decode=stage), request)
        assert [len(done.tables[0][0][0].positions) for done in after.passes] == [10, 6, 6, 6, 7]
