"""Scores that depend on other layers: every layer waits until all are scored, whatever the allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from custom_stages import ByHead, ByLayer, LayerMean, Loudness, both, loudest, sizes
from driving import Request, drive, make_request, same_tables

from kvpolicy import FixedRows, Pipeline, PlanError, Policy, Recency, Scored, Step, Uniform

BOTH = pytest.mark.parametrize("backend", ["numpy", "torch"])

ALLOCATORS = [Uniform(), ByLayer((2, -2)), ByHead(((1, -2), (3, -2)))]


@BOTH
@pytest.mark.parametrize("allocate", ALLOCATORS, ids=["uniform", "by layer", "by head"])
class TestAcrossLayers:
    def test_every_layer_is_scored_by_all(self, backend: str, allocate: Any) -> None:
        request = make_request(layers=2, batch=2, prompt=12, steps=3, padding=(0, 4), value_dim=1)
        trace = drive(both(5, LayerMean(Loudness()), allocate=allocate), request, backend=backend)
        mean = request.values.mean(axis=0, keepdims=True).repeat(2, axis=0)
        common = Request(request.queries, request.keys, mean, request.prompt, request.scale, request.padding)
        first = trace.passes[0]
        for layer, b, h in np.ndindex(2, 2, 2):
            rows = len(first.tables[layer][b][h].positions)
            assert first.tables[layer][b][h].positions == loudest(common, layer, b, h, 12, rows)
        for done in trace.passes:
            assert sum(np.ravel(sizes(done))) == 2 * 2 * 2 * 5

    def test_within_the_budget_nothing_is_touched(self, backend: str, allocate: Any) -> None:
        request = make_request(layers=2, prompt=3, steps=0)
        policy = both(5, LayerMean(Loudness()), allocate=allocate)
        done, due = (drive(p, request, backend=backend).passes[0] for p in (policy, both(99)))
        same_tables(done, due)  # bit for bit
        assert done.outputs.tobytes() == due.outputs.tobytes()


@dataclass(frozen=True)
class Competing:
    """The heads of a layer share its rows; known only when it is scored."""

    whole_model: bool = False

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        heads = layers[0].view.shape[1]
        extra = np.zeros(heads, np.int64)
        extra[0], extra[-1] = heads - 1, extra[-1] - (heads - 1)
        return [budget[:, None] + extra for _ in layers]


@BOTH
def test_a_layer_over_its_own_budget_acts_though_all_together_are_within_theirs(backend: str) -> None:
    prefill = Pipeline(schedule=FixedRows(6), score=Recency(), allocate=ByLayer((4, -4)))
    request = make_request(layers=2, prompt=14, steps=1)
    for score in (Recency(), LayerMean(Recency())):
        decode = Pipeline(schedule=FixedRows(8), score=score, allocate=Competing())
        done = drive(Policy(prefill=prefill, decode=decode), request, backend=backend).passes[-1]
        assert sizes(done) == [[[9, 7]], [[3, 3]]]  # 11 and 3 rows, 8 on average allowed


@BOTH
@pytest.mark.parametrize(("answer", "says"), [([], "0 scores for 2 layers"), (None, "NoneType"), ([1, 2], "int")])
def test_a_wrong_answer_across_layers_is_named(backend: str, answer: Any, says: str) -> None:
    @dataclass(frozen=True)
    class Across(LayerMean):
        def across(self, layers: Sequence[Scored], step: Step) -> Any:
            return answer

    with pytest.raises(PlanError, match=says) as caught:
        drive(both(4, Across(Recency())), make_request(layers=2, prompt=9, steps=0), backend=backend)
    assert "Across" in str(caught.value)
