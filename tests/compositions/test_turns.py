"""A second turn after every recipe: layers and heads of different lengths meet a prompt of several tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariants import assert_books
from stock import POLICIES

from kvpolicy import FixedRows, Pipeline, Policy, full
from kvpolicy.allocators import AdaptiveHeads, ByVariance, LikePrompt, Nested
from kvpolicy.mergers import Fold, MostSimilar, Pivotal
from kvpolicy.scorers import AttentionMass
from kvpolicy_hf import PolicyCache

FIRST, SECOND, REPLY = 4, 3, 6
_MERGING = Pipeline(
    schedule=FixedRows(8),
    score=AttentionMass(),
    allocate=Nested(layers=ByVariance(), heads=AdaptiveHeads()),
    merge=Fold(MostSimilar(), Pivotal()),
)
_ALIKE = Pipeline(schedule=FixedRows(8), score=AttentionMass(heads="mean"), allocate=LikePrompt())
SPOKEN: dict[str, Policy] = {
    **POLICIES,
    "ragged merges": Policy(prefill=_MERGING, decode=_MERGING, count_bias=True),
    "ragged, then alike": Policy(prefill=_MERGING, decode=_ALIKE),
}


def say(model: Any, inputs: dict[str, torch.Tensor], cache: PolicyCache, tokens: int) -> torch.Tensor:
    out: torch.Tensor = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    return out


@pytest.mark.parametrize("policy", SPOKEN.values(), ids=SPOKEN)
def test_a_second_turn_goes_on(policy: Policy, model: Any, inputs: dict[str, torch.Tensor]) -> None:
    cache = PolicyCache(model, policy, inputs=inputs)
    talk = say(model, inputs, cache, FIRST)
    draw = torch.Generator().manual_seed(5)
    reply = torch.randint(3, 64, (2, REPLY), generator=draw).to(talk.device)
    talk = torch.cat([talk, reply], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, FIRST + REPLY), value=1)
    again = {"input_ids": talk, "attention_mask": mask}
    talk = say(model, again, cache, SECOND)
    assert_books(policy, cache, again, SECOND)
    if policy == full():
        plain = {**again, "pixel_values": inputs["pixel_values"]}
        assert torch.equal(say(model, plain, PolicyCache(model, policy, inputs=plain), SECOND), talk)
    else:
        report = cache.report()
        assert report.kv_bytes < report.full_kv_bytes
        assert report.evicted + report.merged > 0
