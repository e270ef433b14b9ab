"""Stages and tools that work with attention follow a model's caps, sinks and masks too, or say that they cannot."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import checks
import pytest
import torch
from every import FAMILIES
from family import Family
from torch import Tensor

import kvpolicy
from kvpolicy import KeepRatio, Pipeline, Policy, UnsupportedModelError
from kvpolicy_hf import PolicyCache, enable, from_press
from kvpolicy_hf.simulate import RecordError, record

BY_NAME = {family.name: family for family in FAMILIES}
PECULIAR = [BY_NAME[name] for name in ("Gemma 2", "gpt-oss", "Gemma 3", "PaliGemma", "DeepSeek-V3")]


@pytest.mark.parametrize("family", PECULIAR, ids=repr)
def test_a_press_gets_the_models_own_attention(family: Family) -> None:
    seen: list[Tensor] = []

    def score(
        module: Any, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Tensor, kwargs: Any
    ) -> Tensor:
        seen.append(attentions + 0)
        return keys.norm(dim=-1)

    model, eager, row = family.new(), family.new(), family.rows()[0]
    eager.set_attn_implementation("eager")
    due = checks.attention_of(eager, row)
    enable(model)
    scorer = from_press(SimpleNamespace(score=score))
    seen.clear()  # it was tried
    policy = Policy(prefill=Pipeline(schedule=KeepRatio(0.5), score=scorer))
    checks.forward(model, row, PolicyCache(model, policy, inputs=row))
    for number, attentions in zip(family.layers, seen, strict=True):
        torch.testing.assert_close(attentions, due[number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Gemma 2", "gpt-oss", "Gemma 3"])
def test_a_record_has_no_place_for_them(name: str) -> None:
    model = BY_NAME[name].new()
    enable(model)
    with pytest.raises(RecordError, match="capped logits, sinks, or tokens"):
        record(model, BY_NAME[name].rows()[0], new_tokens=2)


@pytest.mark.parametrize("recipe", [kvpolicy.expected_attention, kvpolicy.keep_kv])
def test_what_reasons_with_logits_refuses_capped_ones(recipe: Any) -> None:
    model, inputs = BY_NAME["Gemma 2"].new(), BY_NAME["Gemma 2"].batch()
    enable(model)
    with pytest.raises(UnsupportedModelError, match=r"softcap=2.0.*Hint"):
        checks.tokens_of(model, inputs, PolicyCache(model, recipe(keep=0.4)), streamer=checks.Silent())


def test_an_encoder_decoder_that_is_given_one_cache_only() -> None:
    family = BY_NAME["BART"]
    model, inputs = family.new(), family.batch()
    enable(model)
    with pytest.raises(UnsupportedModelError, match="takes its PolicyCache in an EncoderDecoderCache"):
        model.generate(**inputs, past_key_values=PolicyCache(model, kvpolicy.full()), max_new_tokens=4)
