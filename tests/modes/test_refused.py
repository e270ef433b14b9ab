"""What is refused is refused in words, before a token is produced."""

from __future__ import annotations

import re

import pytest
from expected import Mode, modes_of
from models import new_llama, words
from ours import POLICIES, ROWS, SETTINGS, padded, repeating
from silent import Silent
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

import kvpolicy
from kvpolicy import CacheError, Policy
from kvpolicy_hf import PolicyCache, enable

SHARING = ["d2o", "vl_cache", "air_cache"]


@pytest.mark.parametrize("policy", ["full", "h2o"])
@pytest.mark.parametrize("mode", modes_of("test_refused.py::test_before_any_token"), ids=repr)
def test_before_any_token(mode: Mode, policy: str, model: PreTrainedModel) -> None:
    kind = kvpolicy.UnsupportedModelError if mode.by == "kvpolicy" else ValueError
    inputs = padded()
    cache = PolicyCache(model, POLICIES[policy], inputs=inputs)
    streamer = {} if "num_beams" in mode.options else {"streamer": Silent()}  # beams cannot be streamed
    with pytest.raises(kind, match=re.escape(mode.refused)):
        model.generate(**inputs, **{**SETTINGS, **mode.options}, past_key_values=cache, **streamer)


@pytest.mark.parametrize("policy", ["full", "h2o"])
def test_tokens_that_are_fed_again(policy: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose attention does not hear of use_cache, a padded batch shows it in the pass after the prompt."""
    monkeypatch.setattr("kvpolicy_hf.served_model.hears_use_cache", lambda model: False)
    inputs = padded()
    cache = PolicyCache(model, POLICIES[policy], inputs=inputs)
    with pytest.raises(kvpolicy.PolicyError, match="feed new tokens only, which use_cache=False does not do"):
        model.generate(**inputs, **SETTINGS, use_cache=False, past_key_values=cache)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("mode", modes_of("test_refused.py::test_guesses_that_cannot_be_exact"), ids=repr)
def test_guesses_that_cannot_be_exact(mode: Mode, model: PreTrainedModel) -> None:
    inputs = repeating()
    caches = [PolicyCache(model, POLICIES["h2o"])]
    if "layers" in mode.name:
        caches = [PolicyCache(model, kvpolicy.catalogue(keep=0.4)[name], inputs=inputs) for name in SHARING]
    if "later turn" in mode.name:
        caches = [PolicyCache(model, policy, inputs=inputs) for policy in (POLICIES["full"], POLICIES["h2o"])]
        for cache in caches:
            model(input_ids=words(4, 2), past_key_values=cache)
    for cache in caches:
        for helper in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": new_llama()}):
            with pytest.raises(CacheError, match=re.escape(mode.refused)):
                model.generate(**inputs, **SETTINGS, **helper, past_key_values=cache, streamer=Silent())


def test_the_stage_is_named(model: PreTrainedModel) -> None:
    cache = PolicyCache(model, kvpolicy.vl_cache(rows=9), inputs=ROWS[0])
    with pytest.raises(CacheError, match=r"Policy\(prefill=...\): BySparsity\(.*\) waits"):
        cache.activate_past_recording()


def test_a_stage_that_looks_at_later_layers(model: PreTrainedModel) -> None:
    """It says so only by looking, in the first pass that holds a guess."""
    sharing = kvpolicy.Pipeline(
        schedule=kvpolicy.KeepRatio(0.5), score=kvpolicy.Recency(), allocate=kvpolicy.LikePrompt()
    )
    cache = PolicyCache(model, Policy(prefill=kvpolicy.h2o(keep=0.5).prefill, decode=sharing), inputs=repeating())
    with pytest.raises(CacheError, match="a stage looks at layer 1 while layer 0 runs tokens that may be taken back"):
        model.generate(**repeating(), **SETTINGS, prompt_lookup_num_tokens=3, past_key_values=cache, streamer=Silent())


def test_recurrent_layers_cannot_take_tokens_back() -> None:
    config = Qwen3NextConfig(
        vocab_size=151,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        pad_token_id=0,
    )
    model = Qwen3NextForCausalLM(config).eval()
    enable(model)
    cache = PolicyCache(model, POLICIES["ada_kv"], inputs=repeating())
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(**repeating(), **SETTINGS, prompt_lookup_num_tokens=3, past_key_values=cache)
    cache.activate_past_recording()
    model(input_ids=repeating()["input_ids"], past_key_values=cache)
    model(input_ids=words(3, 1), past_key_values=cache)
    with pytest.raises(
        CacheError, match=r"crop\(-1\): the model has layers of kind LinearAttentionLayer, which do not"
    ):
        cache.crop(-1)


@pytest.mark.parametrize("mode", modes_of("test_refused.py::test_encoder_decoders_make_no_guesses"), ids=repr)
def test_encoder_decoders_make_no_guesses(mode: Mode) -> None:
    ends = {f"{end}_{name}": 2 for end in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = BartConfig(
        **ends, vocab_size=151, d_model=24, encoder_ffn_dim=32, decoder_ffn_dim=32, forced_eos_token_id=None
    )
    model = BartForConditionalGeneration(config).eval()
    enable(model)
    cache = EncoderDecoderCache(PolicyCache(model, POLICIES["h2o"], inputs=repeating()), DynamicCache())
    with pytest.raises(CacheError, match=re.escape(mode.refused)):
        model.generate(**repeating(), **SETTINGS, num_beams=1, prompt_lookup_num_tokens=3, past_key_values=cache)


@pytest.mark.parametrize("mode", modes_of("test_refused.py::test_continuous_batching"), ids=repr)
def test_continuous_batching(mode: Mode, model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=re.escape(mode.refused)):
        model.generate_batch([ROWS[0]["input_ids"][0].tolist()], max_new_tokens=4)
