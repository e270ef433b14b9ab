"""How often a decoded token waits for the device, and what comes to light when it does."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from driving import Request, drive, make_request
from torch.utils._python_dispatch import TorchDispatchMode

from kvpolicy import (
    CacheView,
    FixedRows,
    Noise,
    Pass,
    Pipeline,
    PlanError,
    Policy,
    Session,
    Step,
    TopK,
    Uniform,
    ada_kv,
    backend_by_name,
    elastic_cache,
    h2o,
    streaming_llm,
    tova,
)
from kvpolicy._doubts import Doubts

REQUEST = make_request(seed=2, layers=4, batch=2, heads=2, groups=2, dim=4, prompt=12, steps=4, padding=(0, 2))
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Waiting(TorchDispatchMode):
    """Counts what would bring a number to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func._schema.name in WAITS
        return func(*args, **(kwargs or {}))


def token(session: Session, request: Request, at: int) -> None:
    """One more token through all layers."""
    now = Pass(
        start=at,
        positions=torch.full((2, 1), at),
        valid=torch.ones(2, 1, dtype=torch.bool),
        tokens=session._layers[0].seen * 0 + 1,
        columns={},
    )
    for layer in range(len(session)):
        keys, values, queries = (
            torch.tensor(data[layer][:, :, at : at + 1]) for data in (request.keys, request.values, request.queries)
        )
        session.append(layer, keys, values, now)
        session.advance(layer, queries, request.scale, now)


@pytest.mark.parametrize(
    ("policy", "checked"),
    [
        (h2o(rows=6), 1),
        (tova(rows=6), 1),
        (streaming_llm(rows=6, sinks=2), 1),
        (elastic_cache(rows=6, distance=2), 1),
        (ada_kv(rows=6, window=3), 0),  # it does nothing while decoding
    ],
    ids=repr,
)
@pytest.mark.parametrize("check", [True, False])
def test_a_pass_waits_once_if_at_all(policy: Policy, checked: int, *, check: bool) -> None:
    session = drive(policy, REQUEST, backend="torch", check=check).session
    later = make_request(seed=3, layers=4, batch=2, heads=2, groups=2, dim=4, prompt=12, steps=5, padding=(0, 2))
    with Waiting() as waiting:
        token(session, later, session.length())
    assert waiting.times == (checked if check else 0)


@dataclass(frozen=True)
class NotANumber:
    """NaN in one layer, and a mark of every layer that is scored."""

    layer: int
    scored: list[int]

    def score(self, view: CacheView, step: Step) -> Any:
        self.scored.append(view.layer)
        scores = view.xp.astype(view.positions, view.xp.float64)
        return scores * float("nan") if view.layer == self.layer else scores


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_what_is_wrong_in_the_first_layer_is_told_at_the_end_of_the_pass(backend: str) -> None:
    scorer = NotANumber(1, [])
    policy = Policy(prefill=Pipeline(schedule=FixedRows(3), score=scorer, select=TopK()))
    with pytest.raises(PlanError, match=r"scores of NotANumber at layer 1 are NaN \(first at batch row 0, head 0"):
        drive(policy, REQUEST, backend=backend)
    assert scorer.scored == [0, 1, 2, 3]


@dataclass(frozen=True)
class Equal:
    """Allocator and scorer that take whatever they are given, and note that they were asked."""

    asked: list[str]
    whole_model: bool = True

    def allocate(self, budget: Any, layers: Any, step: Step) -> Any:
        self.asked.append("allocate")
        return Uniform().allocate(budget, layers, step)

    def score(self, view: CacheView, step: Step) -> Any:
        return NotANumber(1, []).score(view, step)

    def across(self, layers: Any, step: Step) -> Any:
        self.asked.append("across")
        return [scored.scores for scored in layers]


@pytest.mark.parametrize("crosses", [True, False])
def test_nobody_goes_by_scores_that_are_wrong(crosses: bool) -> None:
    asked: list[str] = []
    stage = Equal(asked)
    parts: dict[str, Any] = {"score": stage} if crosses else {"score": NotANumber(1, []), "allocate": stage}
    with pytest.raises(PlanError, match="NaN"):
        drive(Policy(prefill=Pipeline(schedule=FixedRows(3), **parts)), REQUEST, backend="torch")
    assert asked == []


def test_nobody_is_told_of_a_plan_that_is_wrong() -> None:
    told: list[int] = []
    scorer = NotANumber(1, [])
    policy = Policy(prefill=Pipeline(schedule=FixedRows(3), score=scorer, select=TopK()))
    with pytest.raises(PlanError, match="NaN"):
        drive(policy, REQUEST, backend="torch", listen=lambda layer, *_: told.append(layer))
    assert (scorer.scored, told) == ([0, 1], [0])


def test_a_new_request_has_no_doubts_left() -> None:
    session = Session(Policy(prefill=Pipeline(schedule=FixedRows(2), score=Noise())), backend_by_name("torch"), 2)
    session._planner._doubts.add(torch.tensor(True), lambda: PlanError("of an earlier request"))
    session.clear()
    session._planner._doubts.settle()


def test_the_first_of_several_errors_is_raised() -> None:
    doubts = Doubts()
    for number, wrong in enumerate((False, True, True)):
        doubts.add(torch.tensor(wrong), lambda number=number: PlanError(f"number {number}"))  # type: ignore[misc]
    with pytest.raises(PlanError, match="number 1"):
        doubts.settle()
    doubts.settle()  # each is raised once


@pytest.mark.parametrize("policy", [elastic_cache(keep=0.4), h2o(keep=0.4)], ids=["elastic_cache", "h2o"])
def test_no_table_is_kept_for_the_checks(policy: Policy) -> None:
    """A prompt's rows are gone as soon as their layer was planned, not when the last layer has been run."""
    session = Session(policy, backend_by_name("torch"), 2, check=True)
    places = torch.arange(20)[None]
    now = Pass(0, places, places >= 0, np.array([20]), {})
    keys, values, queries = (torch.randn(1, 2, 20, 4) for _ in range(3))
    session.append(0, keys, values, now)
    session.advance(0, queries, 0.5, now)
    gone = [weakref.ref(data) for data in (keys, values)]
    del keys, values
    gc.collect()
    assert [data() for data in gone] == [None, None]
