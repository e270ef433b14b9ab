"""Whole generations on the engine and on the slow model: every recipe, many compositions, and faults that are found."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from custom_stages import ByHead, Wide
from driving import feed, make_request
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import run_state_machine_as_test
from stock import HEADS, LAYERS, POLICIES, controller, parts

from kvpolicy import (
    AdaptiveHeads,
    AttentionMass,
    BySparsity,
    ByStrengthAndSkew,
    ByVariance,
    CacheError,
    CacheView,
    Clusters,
    Column,
    ColumnScore,
    Drop,
    EliteMass,
    EMAGate,
    Every,
    FixedPoint,
    FixedRows,
    Fold,
    Gaussian,
    KeepRatio,
    KeyNorm,
    LikePrompt,
    Mean,
    MemoryBudget,
    MostSimilar,
    NearestPosition,
    Nested,
    NextKept,
    Noise,
    Pipeline,
    Pivotal,
    Policy,
    PolicyError,
    Pooled,
    PostImageMass,
    Prominence,
    Pyramid,
    Recency,
    SameCluster,
    Scored,
    Session,
    Shared,
    SimilaritySoftmax,
    SimilarityWeighted,
    Step,
    TopK,
    TopRecall,
    WindowMass,
    ZeroPerturbation,
    adore,
    backend_by_name,
    d2o,
    elastic_cache,
    full,
    h2o,
    k_norm,
    key_diff,
    random,
    streaming_llm,
)
from kvpolicy import Phase as PolicyPhase
from kvpolicy._layer import Layer
from kvpolicy._serial_names import STOCK
from kvpolicy.backends._torch_store import TorchStore
from kvpolicy.testing import BrokenTraceError, Crop, Decode, Prefill, Reorder, Reset, Trace, Turn, replay
from kvpolicy.testing._outcome import Place
from kvpolicy.testing.machine import generation_machine, traces

BACKENDS = ("torch", "numpy")
QUICK = settings(max_examples=4, deadline=None, stateful_step_count=8, suppress_health_check=list(HealthCheck))


def pipeline(schedule: Any = None, score: Any = None, **stages: Any) -> Pipeline:
    """On small tables: half of the tokens, by attention, unless said otherwise."""
    return Pipeline(schedule=schedule or KeepRatio(0.5), score=score or AttentionMass(), **stages)


def both(schedule: Any = None, score: Any = None, *, recall: int = 0, **rest: Any) -> Policy:
    """The same pipeline for prompts and for decoding; with ``recall`` so many rows may come back."""
    named = {name: rest.pop(name) for name in ("count_bias", "positions") if name in rest}
    if recall:
        rest["recall"] = TopRecall(score or AttentionMass(), rows=recall)
    stage = pipeline(schedule, score, **rest)
    return Policy(prefill=stage, decode=stage, **named)


DIM = 2
COMPOSED: dict[str, Policy] = {
    "statistics": both(score=AttentionMass(reduce="mean", heads="mean"), allocate=AdaptiveHeads()),
    "moving, recalled": both(score=AttentionMass(reduce="moving"), recall=2),
    "two windows": Policy(
        prefill=pipeline(score=WindowMass(window=4)), decode=pipeline(KeepRatio(0.6), WindowMass(window=3))
    ),
    "its own window": both(score=Wide(3), allocate=ByHead(((1, -1),) * 3)),
    "pooled": both(score=Pooled(WindowMass(window=3), kernel=3, mode="max"), allocate=AdaptiveHeads(floor=0.5)),
    "shared": both(score=Shared(AttentionMass()), allocate=Pyramid(beta=4.0)),
    "shared, within layers": both(FixedRows(4), Shared(Pooled(AttentionMass(), kernel=3)), allocate=AdaptiveHeads()),
    "shared, over the model": both(score=Shared(AttentionMass()), allocate=ByStrengthAndSkew()),
    "by variance, then alike": Policy(
        prefill=pipeline(KeepRatio(0.6), allocate=ByVariance()), decode=pipeline(allocate=LikePrompt())
    ),
    "competing, then alike": Policy(
        prefill=pipeline(KeepRatio(0.7), allocate=AdaptiveHeads()),
        decode=pipeline(KeepRatio(0.3), Recency(), allocate=LikePrompt()),
    ),
    "nested": both(score=PostImageMass(), allocate=Nested(layers=BySparsity(), heads=AdaptiveHeads())),
    "text": both(FixedRows(3), EliteMass(window=6), select=TopK(text=True), allocate=ByStrengthAndSkew()),
    "clusters": both(select=Clusters(), merge=Fold(SameCluster(), Gaussian()), count_bias=True),
    "loose clusters": both(
        score=KeyNorm(), select=Clusters(epsilon=0.3), merge=Fold(SameCluster(), Gaussian(sigma=5.0, scale_values=True))
    ),
    "nearest": both(merge=Fold(NearestPosition(first=1, last=1), Mean()), select=TopK(first=1, last=1)),
    "values only": both(merge=Fold(NextKept(count=3), Mean(), keys=False), count_bias=True),
    "by chance": both(merge=Fold(NextKept(count=2), Prominence(), keys=False), recall=1),
    "pivotal": both(FixedRows(4), merge=Fold(MostSimilar(), Pivotal()), allocate=Pyramid(beta=3.0)),
    "not convex": both(merge=Fold(MostSimilar(threshold=0.2), SimilarityWeighted()), recall=2),
    "gated": both(
        merge=Fold(EMAGate(MostSimilar()), SimilaritySoftmax()), allocate=Nested(ByVariance(), AdaptiveHeads())
    ),
    "unfelt": both(merge=Fold(MostSimilar(), ZeroPerturbation()), count_bias=True, allocate=AdaptiveHeads()),
    "slots": both(FixedRows(4), merge=Fold(NearestPosition(), Mean()), recall=2, positions="slots"),
    "slots, ragged": both(score=WindowMass(window=1), allocate=AdaptiveHeads(), positions="slots"),
    "rarely": both(Every(3, FixedRows(3)), select=TopK(first=1, recent=0.5)),
    "bytes": both(MemoryBudget(1500), Noise(seed=3), select=TopK(last=1)),
    "a column": both(FixedRows(4), ColumnScore("segment"), merge=Drop()),
    "frozen": Policy(
        prefill=pipeline(merge=Fold(MostSimilar(), Mean())), decode=pipeline(score=FixedPoint(distance=2))
    ),
    "only tokens": Policy(decode=pipeline(allocate=Nested(Pyramid(beta=4.0), AdaptiveHeads()))),
    "only prompts, recalled": Policy(prefill=pipeline(FixedRows(3), recall=TopRecall(AttentionMass(), rows=1))),
    "controller": adore(rows=4, recall=2, controller=controller(DIM)),
    "controller, shared": adore(keep=0.5, recall=2, controller=Shared(controller(DIM))),
}
SHAPES: dict[str, dict[str, Any]] = {
    "head_kv": {"layers": LAYERS, "heads": HEADS},
    "its own window": {"heads": 2},
    "controller": {"dim": DIM},
    "controller, shared": {"dim": DIM},
    "bytes": {"layers": 1, "batch": 1, "dim": 2},
}


def generate(policy: Policy, backend: str, sizes: dict[str, Any], quick: settings = QUICK) -> None:
    run_state_machine_as_test(generation_machine(policy, backend=backend, sizes=sizes), settings=quick)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*POLICIES, *COMPOSED])
def test_engine_and_model_agree(name: str, backend: str) -> None:
    generate({**POLICIES, **COMPOSED}[name], backend, SHAPES.get(name, {}))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("policy", [h2o(keep=0.4), COMPOSED["gated"], COMPOSED["slots"], d2o(keep=0.5)], ids=range(4))
def test_in_narrower_dtypes(policy: Policy, dtype: str) -> None:
    generate(policy, "torch", {"dtype": dtype}, settings(QUICK, max_examples=2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "policy", [streaming_llm(rows=4), k_norm(keep=0.5), key_diff(keep=0.5), random(rows=3)], ids=range(4)
)
def test_where_almost_everything_ties(policy: Policy, backend: str) -> None:
    generate(policy, backend, {"kind": "flat"}, settings(QUICK, max_examples=3))


@settings(QUICK, max_examples=8)
@given(traces(layers=1, image=None))
def test_traces_are_values(trace: Trace) -> None:
    names = {"Trace": Trace, **{op.__name__: op for op in (Prefill, Turn, Decode, Reorder, Crop, Reset)}}
    assert eval(repr(trace), names) == trace
    replay(both(recall=1), trace)


def test_reprs() -> None:
    trace = Trace(
        ops=(Prefill(6, (2, 4)), Decode(), Crop(2), Reorder((1, 0)), Turn(3), Reset()), batch=2, padding=(0, 3)
    )
    assert repr(trace) == (
        "Trace(ops=(Prefill(tokens=6, chunks=(2, 4)), Decode(), Crop(tokens=2), Reorder(index=(1, 0)), Turn(tokens=3), "
        "Reset()), batch=2, padding=(0, 3))"
    )
    assert repr(Trace()) == "Trace()"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Prefill(0), "Prefill(tokens=0)"),
        (lambda: Prefill(3, (1, 1)), "must add up to 3"),
        (lambda: Prefill(3, (3, 0)), "Prefill(chunks=0)"),
        (lambda: Turn(0), "Turn(tokens=0)"),
        (lambda: Decode(-1), "Decode(steps=-1)"),
        (lambda: Reorder(()), "Reorder(index="),
        (lambda: Reorder((0, -1)), "Reorder(index=-1)"),
        (lambda: Crop(-1), "Crop(tokens=-1)"),
        (lambda: Trace(dim=3), "dim must be even"),
        (lambda: Trace(heads=0), "Trace(heads=0)"),
        (lambda: Trace(batch=2, padding=(1,)), "one number for each of 2"),
        (lambda: Trace(dtype="int8"), "dtype must be one of"),
        (lambda: Trace(kind="odd"), "kind must be one of"),
        (lambda: generation_machine(full(), sizes={"depth": 3}), "depth"),
        (lambda: traces(depth=3).example(), "depth"),
    ],
    ids=range(15),
)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_what_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(says)):
        make()


def test_fixed_sizes_are_kept() -> None:
    fixed = {"layers": 2, "heads": 2, "padding": (0, 1), "image": None, "seed": 7}

    @settings(QUICK, max_examples=5)
    @given(traces(**fixed))
    def check(trace: Trace) -> None:
        assert {name: getattr(trace, name) for name in fixed} == fixed
        assert trace.batch == 2

    check()


# Faults of the engine, each found at its place ------------------------------------------------------------------------

PADDED = Trace(ops=(Prefill(6), Decode(2)), layers=2, batch=2, heads=2, padding=(0, 3))


def broken(policy: Policy, trace: Trace, **settings_: Any) -> BrokenTraceError:
    with pytest.raises(BrokenTraceError) as caught:
        replay(policy, trace, **settings_)
    found = caught.value
    assert found.trace == found.example
    assert found.trace.ops == trace.ops[: len(found.trace.ops)]
    with pytest.raises(BrokenTraceError, match=re.escape(str(found))):
        replay(policy, found.trace, **settings_)  # it is all that is needed to see it again
    return found


def test_columns_that_are_not_compacted(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = TorchStore.apply

    def forgetful(self: TorchStore, plan: Any, kept: Any) -> None:
        before = self.view().columns["mass"].data.clone()
        apply(self, plan, kept)
        mass = self.view().columns["mass"]
        self.observe({"mass": replace(mass, data=before[..., : mass.data.shape[-1]])})

    monkeypatch.setattr(TorchStore, "apply", forgetful)
    replay(h2o(keep=1.0), PADDED)
    found = broken(h2o(keep=0.5), PADDED)
    assert found.place._replace(token=-1) == Place(0, 0, 0, 0)
    assert found.detail.startswith("mass is ")
    assert "in the slow model after Prefill(tokens=6) it is " in found.detail


def test_beams_that_forget_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    select = TorchStore.select_batch

    def forgetful(self: TorchStore, index: Any) -> None:
        before = self._registers
        select(self, index)
        self._registers = {name: data[: len(index)] for name, data in before.items()}

    monkeypatch.setattr(TorchStore, "select_batch", forgetful)
    trace = replace(PADDED, ops=(*PADDED.ops, Reorder((1, 0)), Decode(1)), padding=())
    replay(d2o(keep=0.5), replace(trace, ops=PADDED.ops))
    found = broken(d2o(keep=0.5, first=1), trace)
    assert found.place == Place(2, 0, 0, 0)
    assert found.detail.startswith("register 'gate' is ")
    assert found.trace.ops[-1] == Reorder((1, 0))


def test_padding_that_is_counted_as_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    append = Layer.append

    def counting(self: Layer, rows: Any, tokens: Any) -> Any:
        seen = self.seen
        view = append(self, rows, tokens)
        self.seen = seen + rows.positions.shape[-1]
        return view

    monkeypatch.setattr(Layer, "append", counting)
    replay(h2o(rows=3), replace(PADDED, padding=()))
    found = broken(h2o(rows=3), PADDED)
    assert (found.place, found.detail) == (
        Place(0, 0, 1),
        "seen is 6; in the slow model after Prefill(tokens=6) it is 3.",
    )


def test_a_row_of_the_archive_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    join = TorchStore.join

    def losing(self: TorchStore, rows: Any, count: Any) -> None:
        if self._on_host:
            oldest = (rows.positions == rows.positions.amax(-1, keepdim=True)) & rows.valid
            rows = replace(rows, valid=rows.valid & ~oldest)
        join(self, rows, count)

    monkeypatch.setattr(TorchStore, "join", losing)
    found = broken(adore(rows=3), replace(PADDED, padding=()))
    assert found.place[:4] == (0, 0, 0, 0)
    assert found.detail.startswith("there is nothing; in the archive of the slow model")


def test_a_prompt_whose_rows_are_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Session.advance

    def stale(self: Session, layer: int, queries: Any, scale: float, now: Any, **rest: Any) -> None:
        before = self._layers[layer].prompt_kept
        advance(self, layer, queries, scale, now, **rest)
        if now.start:
            self._layers[layer].prompt_kept = before

    monkeypatch.setattr(Session, "advance", stale)
    policy = Policy(prefill=elastic_cache(keep=0.5).prefill)
    replay(policy, PADDED)
    found = broken(policy, replace(PADDED, ops=(*PADDED.ops, Turn(4))))
    assert found.place == Place(3, 0, 0, 0)
    assert found.detail == "prompt_kept is 3; in the slow model after Turn(tokens=4) it is 6."


def test_a_column_that_is_summed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvpolicy.backends._torch_compaction import Folding

    column = Folding.column

    def twice(self: Folding, whole: Column, survivors: Column) -> Column:
        once = column(self, whole, survivors)
        return replace(once, data=2 * once.data - survivors.data) if whole.on_merge == "sum" else once

    monkeypatch.setattr(Folding, "column", twice)
    policy = COMPOSED["nearest"]
    replay(policy, Trace(ops=(Prefill(2), Decode())))  # nothing has folded yet
    found = broken(policy, Trace(ops=(Prefill(6),), seed=1))
    assert found.place[:4] == (0, 0, 0, 0)
    assert found.detail == "count is 7; in the slow model after Prefill(tokens=6) it is 4."


def test_a_crop_that_should_have_been_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layer, "settle", lambda self, by: None)
    trace = replace(PADDED, ops=(*PADDED.ops, Crop(1)))
    replay(full(), trace)
    found = broken(h2o(keep=0.5), trace)
    assert found.detail.startswith("crop(7) was done; in the slow model it is not exact")
    monkeypatch.undo()

    def never(self: Session, length: int) -> None:
        raise CacheError("never")

    monkeypatch.setattr(Session, "crop", never)
    found = broken(full(), trace)
    assert (found.place, found.detail) == (Place(2), "crop(7) is refused (never); in the slow model it is exact.")
    replay(h2o(keep=0.5), trace)


def test_a_machine_finds_and_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    take_back = Layer.take_back

    def uncounted(self: Layer, mask: Any, ops: Any) -> None:
        recalled = self.recalled
        take_back(self, mask, ops)
        self.recalled = min(recalled, self.recalled)

    monkeypatch.setattr(Layer, "take_back", uncounted)
    with pytest.raises(BrokenTraceError, match="recalled is 0") as caught:
        generate(COMPOSED["moving, recalled"], "torch", {}, settings(QUICK, max_examples=60, phases=[Phase.generate]))
    monkeypatch.setattr(Layer, "take_back", take_back)
    assert caught.value.place.layer >= 0
    replay(COMPOSED["moving, recalled"], caught.value.trace)


class OfTwoMinds:
    """The tokens 1 and 4 tie, and which of the two goes is decided by their slots, as rounding does."""

    def score(self, view: Any, step: Any) -> Any:
        slots = torch.arange(view.shape[2], dtype=torch.float64).expand(view.shape)
        tie = (view.positions == 1) | (view.positions == 4)
        return torch.where(tie, 0.5, view.positions) + 1e-3 * slots


class TestNearTies:
    """In a narrow dtype rounding may decide between two rows; then another order of the slots decides otherwise."""

    trace = Trace(ops=(Prefill(3), Decode(3)), dtype="float32")
    policy = Policy(decode=Pipeline(schedule=FixedRows(3), score=OfTwoMinds()))

    def test_it_is_no_fault_where_the_model_itself_is_of_two_minds(self) -> None:
        replay(self.policy, self.trace)

    def test_it_is_one_in_float64(self) -> None:
        found = broken(self.policy, replace(self.trace, dtype="float64"))
        assert found.place._replace(token=-1) == Place(2, 0, 0, 0)

    def test_a_fault_is_one_in_any_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        join = TorchStore.join
        monkeypatch.setattr(
            TorchStore, "join", lambda self, rows, count: join(self, replace(rows, keys=-rows.keys), count)
        )
        broken(adore(rows=3), replace(PADDED, padding=(), dtype="float16"))


# What the model found in the engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "policy",
    [
        Policy(
            decode=pipeline(score=KeyNorm(), allocate=Nested(Pyramid(beta=4.0), AdaptiveHeads()), select=TopK(first=2))
        ),
        both(KeepRatio(0.8), KeyNorm(), allocate=AdaptiveHeads(floor=0.0)),
        both(KeepRatio(0.8), KeyNorm(), allocate=Nested(Pyramid(beta=4.0), AdaptiveHeads())),
    ],
    ids=range(3),
)
@pytest.mark.parametrize("passes", [(3, 3, 1, 5, 1, 1), (6, 5, 3)], ids=range(2))
def test_a_batch_row_within_its_budget_has_no_plan_whatever_another_holds(
    policy: Policy, passes: tuple[int, ...], backend: str
) -> None:
    """It keeps what it had of quotas and excess: it is told of them as it is alone."""
    for seed in range(4):
        request = make_request(seed=seed, layers=2, batch=2, prompt=passes[0], steps=sum(passes[1:]), padding=(0, 2))
        sessions = [Session(policy, backend_by_name(backend), 2) for _ in range(3)]
        for length in passes:
            feed(sessions[2], request, sessions[2].length(), length)
            for b in (0, 1):
                start = sessions[b].length()
                feed(sessions[b], request.alone(b), start, length if start else length - request.left[b])
                for mine, due in zip(sessions[2]._layers, sessions[b]._layers, strict=True):
                    for name in ("exceeded", "prompt_quota", "prompt_kept"):
                        assert getattr(mine, name)[b].tolist() == getattr(due, name)[0].tolist(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_strength_and_skew_go_by_token_and_not_by_slot(backend: str) -> None:
    rng, ops = np.random.default_rng(0), backend_by_name(backend)
    places = np.array([[[0, 2, 3, 5, -1], [5, 1, 0, 2, 6]]])
    scores = [rng.random((1, 2, 7)) for _ in range(3)]  # by token
    quotas = []
    for _ in range(4):
        places = rng.permuted(places, axis=-1)
        layers = []
        for number, by_token in enumerate(scores):
            mine = np.take_along_axis(by_token, np.maximum(places, 0), axis=-1)
            arrays = [ops.from_host(data) for data in (mine[..., None], mine[..., None], places, places >= 0)]
            layers.append(Scored(CacheView(*arrays, {}, layer=number, num_layers=3), ops.from_host(mine)))
        held = tuple(np.array([[4, 5]]) for _ in scores)
        empty = [ops.from_host(data) for data in (np.zeros((1, 2, 1, 1)), np.zeros((1, 1), int), np.ones((1, 1), bool))]
        counts = np.array([7])
        step = Step(PolicyPhase.PREFILL, counts, counts, held[0], *empty, 1.0, ops, held=held)
        quotas.append([quota.tolist() for quota in ByStrengthAndSkew().allocate(np.array([3]), layers, step)])
    assert all(quota == quotas[0] for quota in quotas)
    assert len({str(quota) for quota in quotas[0]}) > 1


def test_every_stock_stage_is_here() -> None:
    here = {type(part) for policy in (*POLICIES.values(), *COMPOSED.values()) for part in parts(policy)}
    assert here >= set(STOCK.values())
