"""After any number of steps H2O's mass is what a run with all its attention written down adds up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from models import LLAMA, LLAVA, Family, batch, tables
from transformers import PreTrainedModel

import kvpolicy
from kvpolicy import AttentionMass, CacheView, Column, Scores, Step
from kvpolicy_hf import PolicyCache

FLOAT32 = 2e-5  # relative; sums of some hundred shares in float32 against float64


@dataclass(frozen=True, eq=False)
class Recorder:
    """H2O's scorer, which also writes down what every query saw, in float64."""

    scorer: AttentionMass = field(default_factory=AttentionMass)
    received: dict[tuple[int, int, int, int], float] = field(default_factory=dict)  # layer, batch row, head, token
    passes: list[int] = field(default_factory=list)

    def observe(self, view: CacheView, step: Step) -> Mapping[str, Column]:
        queries, keys = step.queries.double().numpy(), view.keys.double().numpy()
        group = queries.shape[1] // keys.shape[1]
        self.passes.append(queries.shape[2])
        for row, head in np.ndindex(*keys.shape[:2]):
            places, valid = view.positions[row, head].numpy(), view.valid[row, head].numpy()
            for query, place in enumerate(step.query_positions[row].tolist()):
                if not bool(step.query_valid[row, query]):
                    continue
                seen = valid & (places <= place)
                for member in range(group):
                    logits = step.scale * keys[row, head, seen] @ queries[row, head * group + member, query]
                    shares = np.exp(logits - logits.max())
                    for token, share in zip(places[seen].tolist(), shares / shares.sum(), strict=True):
                        spot = (view.layer, row, head, token)
                        self.received[spot] = self.received.get(spot, 0.0) + share / group
        return self.scorer.observe(view, step)

    def score(self, view: CacheView, step: Step) -> Scores:
        return self.scorer.score(view, step)


@pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=lambda family: family.name)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_mass_of_surviving_rows(family: Family, steps: int, model_of: Callable[[Family], PreTrainedModel]) -> None:
    model, inputs, recorder = model_of(family), batch(family.rows()[:2]), Recorder()
    policy = kvpolicy.h2o(rows=9)
    assert policy.decode is not None
    pipeline: Any = replace(policy.decode, score=recorder)
    cache = PolicyCache(model, replace(policy, prefill=pipeline, decode=pipeline), inputs=inputs)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=steps + 1, do_sample=False)

    layers = len(cache.session)
    assert recorder.passes.count(1) == steps * layers, "every decode step was written down"
    compared = 0
    for view in tables(cache):
        mass = view.columns["mass"].data
        for row, head, slot in np.ndindex(*view.shape):
            if bool(view.valid[row, head, slot]):
                spot = (view.layer, row, head, int(view.positions[row, head, slot]))
                assert float(mass[row, head, slot]) == pytest.approx(recorder.received[spot], rel=FLOAT32), spot
                compared += 1
    assert compared == layers * 2 * view.shape[1] * 9
    assert len(recorder.received) > compared, "rows left, and took their mass with them"
    assert mass.dtype == torch.float32
