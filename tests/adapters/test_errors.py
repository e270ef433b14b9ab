"""What cannot be served is refused, by name and with a way out, before a token is produced."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from models import (
    FAMILIES,
    LLAMA,
    LLAVA,
    MIXED,
    TEXT,
    Family,
    continue_with,
    new_llama,
    new_sliding,
    new_tokens,
    text_row,
    text_rows,
    words,
)
from silent import Silent
from torch import Tensor
from transformers import (
    AttentionInterface,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)
from transformers.masking_utils import sliding_window_causal_mask_function

import kvpolicy
from kvpolicy import CacheError, CacheView, Pipeline, PlanError, Policy, PolicyError, Step, UnsupportedModelError
from kvpolicy_hf import PolicyCache, disable, enable, is_enabled
from kvpolicy_hf._transformers.masks import POLICY_OFFSET
from kvpolicy_hf.attention import mask

ModelOf = Callable[[Family], PreTrainedModel]
H2O = kvpolicy.h2o(keep=0.4)


def build(kind: type[Any], config: Any) -> Any:
    torch.manual_seed(7)
    return kind(config).eval()


# Models ------------------------------------------------------------------------------------------------------------


def test_a_model_that_was_not_enabled() -> None:
    with pytest.raises(CacheError, match=r"LlamaForCausalLM is not enabled.*kvpolicy_hf.enable\(model\)"):
        PolicyCache(new_llama(), H2O)


def test_a_model_disabled_again_cannot_make_a_cache() -> None:
    model = new_llama()
    enable(model)
    disable(model)
    with pytest.raises(CacheError, match="not enabled"):
        PolicyCache(model, H2O)


@pytest.mark.parametrize("family", [*FAMILIES, MIXED], ids=repr)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_disabled_under_its_cache(family: Family, attention: str) -> None:
    model, inputs = family.new(), family.batch()
    enable(model)
    cache = PolicyCache(model, H2O)
    disable(model)
    model.set_attn_implementation(attention)
    with pytest.raises(UnsupportedModelError, match=r"disabled.*Hint: enable\(model\)"):
        new_tokens(model, inputs, past_key_values=cache, streamer=Silent())
    assert cache.get_seq_length() == 0
    enable(model)
    cache.reset()
    assert new_tokens(model, inputs, past_key_values=cache).shape == (3, 12)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_of_few_layers_disabled_under_its_cache(layers: int) -> None:
    """With one layer there is no next layer that could notice."""
    model = new_llama(num_hidden_layers=layers)
    enable(model)
    cache = PolicyCache(model, H2O)
    disable(model)
    with pytest.raises(UnsupportedModelError, match="disabled"):
        new_tokens(model, text_row(9, 1), past_key_values=cache, streamer=Silent())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_switched_to_attention_of_ones_own(layers: int) -> None:
    """For which transformers makes no mask."""
    model = new_llama(num_hidden_layers=layers)
    enable(model)
    cache = PolicyCache(model, H2O)
    AttentionInterface.register("of_ones_own", AttentionInterface()["sdpa"])
    model.set_attn_implementation("of_ones_own")
    with pytest.raises(UnsupportedModelError, match="disabled"):
        new_tokens(model, text_row(9, 1), past_key_values=cache, streamer=Silent())


def test_keys_that_go_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may attend on its own after all; the layer above notices."""
    model = new_llama()
    enable(model)
    astray = model.model.layers[1].self_attn
    monkeypatch.setattr(astray, "forward", lambda hidden_states, **given: lost(hidden_states, as_given(**given)))

    def as_given(cache: Any = None, past_key_values: Any = None, **_: Any) -> PolicyCache:
        """The layer's own name for it, from transformers 5.24 on, and before."""
        return past_key_values if cache is None else cache

    def lost(hidden: Tensor, cache: PolicyCache) -> tuple[Tensor, None]:
        keys = hidden.unflatten(-1, (4, 12)).transpose(1, 2)[:, :2]
        cache.update(keys, keys, 1)
        return hidden, None

    cache = PolicyCache(model, H2O)
    with pytest.raises(UnsupportedModelError, match="keys of layer 1 never reached"):
        model(**text_row(9, 1), past_key_values=cache)


def test_a_cache_of_another_model() -> None:
    one, other = new_llama(), new_llama()
    enable(one)
    enable(other)
    cache = PolicyCache(one, H2O)
    with pytest.raises(CacheError, match=r"made for another model.*PolicyCache\(model, policy\) for each model"):
        new_tokens(other, text_row(20, 1), past_key_values=cache, streamer=Silent())
    cache.reset()
    assert new_tokens(one, text_row(20, 1), past_key_values=cache).shape == (1, 12)
    used = PolicyCache(one, H2O)
    new_tokens(one, text_row(20, 1), past_key_values=used)
    with pytest.raises(CacheError, match="made for another model"):
        continue_with(other, used, torch.ones(1, 20), words(1, 1))


def test_a_cache_whose_model_is_gone() -> None:
    model, other = new_llama(), new_llama()
    enable(model)
    enable(other)
    cache = PolicyCache(model, H2O)
    del model
    with pytest.raises(CacheError, match="another model"):
        new_tokens(other, text_row(20, 1), past_key_values=cache)


def test_a_layer_whose_cache_is_gone() -> None:
    model = new_llama()
    enable(model)
    layer = PolicyCache(model, H2O).layers[0]
    gc.collect()
    with pytest.raises(CacheError, match=r"this layer's PolicyCache is gone\. Hint: keep the cache"):
        layer.get_seq_length()


def test_a_model_that_does_not_look_its_attention_up() -> None:
    model = build(BloomForCausalLM, BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=2))
    assert not model._can_set_attn_implementation()
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=r"BloomForCausalLM.*AttentionInterface"):
        enable(model)
    assert not is_enabled(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_that_sdpa_cannot_do(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enabled, such a model would go wrong even without a policy."""
    model = new_llama()
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    model.config._attn_implementation = attention
    with pytest.raises(UnsupportedModelError, match="sdpa"):
        enable(model)
    assert not is_enabled(model)
    assert model.config._attn_implementation == attention


def multi_head_latent() -> PreTrainedModel:
    config = DeepseekV3Config(
        **{**TEXT, "num_key_value_heads": 4},
        moe_intermediate_size=32,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=3,
    )
    return build(DeepseekV3ForCausalLM, config)


def differential() -> PreTrainedModel:
    return build(DiffLlamaForCausalLM, DiffLlamaConfig(**TEXT))


def of_two_kinds() -> PreTrainedModel:
    """Each layer has full attention and a recurrent state."""
    config = FalconH1Config(**TEXT, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_expand=1)
    return build(FalconH1ForCausalLM, config)


UNSERVED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "two attentions over the same keys": (differential, "more than once"),
    "two kinds in a layer": (of_two_kinds, "layer of kind"),
    "only sliding windows": (new_sliding, "no full-attention layer"),
}


@pytest.mark.parametrize("kind", UNSERVED)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("policy", [kvpolicy.full(), H2O], ids=["full", "h2o"])
def test_layers_that_cannot_be_served(kind: str, masked: bool, policy: Policy) -> None:
    make, says = UNSERVED[kind]
    model, inputs = make(), text_row(20, 1)
    plain = new_tokens(model, inputs, 6)
    enable(model)
    assert torch.equal(new_tokens(model, inputs, 6), plain)

    def use() -> None:
        cache = PolicyCache(model, policy)
        if masked:
            new_tokens(model, inputs, past_key_values=cache, streamer=Silent())
        else:
            model(inputs["input_ids"], past_key_values=cache)

    with pytest.raises(UnsupportedModelError, match=says):
        use()


@pytest.mark.parametrize("layers", [1, 3])
def test_keys_that_change_after_the_cache(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an expansion of latents it is known that it treats each token by itself; of nothing else. The last layer
    has no later one that would notice."""
    monkeypatch.setattr("kvpolicy_hf.cache.expands_latents", lambda model: False)
    model = multi_head_latent()
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    enable(model)
    with pytest.raises(UnsupportedModelError, match="changes its keys"):
        model(**text_row(20, 1), past_key_values=PolicyCache(model, H2O))


def test_a_model_without_attention() -> None:
    model = build(MambaForCausalLM, MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2))
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM"):
        enable(model)


def test_earlier_tokens_that_are_hidden() -> None:
    """A policy's rows are seen by every later query."""
    given: dict[str, Any] = {"batch_size": 1, "q_length": 6, "kv_length": 6, "kv_offset": POLICY_OFFSET}
    with pytest.raises(UnsupportedModelError, match="hides from its tokens some that came before"):
        mask(**given, mask_function=sliding_window_causal_mask_function(3))


def test_a_model_is_walked_through_for_use_cache_once_and_only_where_that_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr("kvpolicy_hf.served_model.hears_use_cache", lambda model: asked.append(model) or True)
    model = new_llama()
    enable(model)
    cache = PolicyCache(model, H2O)
    assert not asked
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="LlamaAttention attends with use_cache=False"):
            model(**text_row(8, 1), past_key_values=cache, use_cache=False)
        cache.reset()
    assert asked == [model]


@pytest.mark.parametrize("extra", ["indices", "position_bias"])
def test_arguments_that_change_the_logits(extra: str) -> None:
    """Whatever a model hands to its attention besides what a policy follows."""
    model = new_llama()
    enable(model)
    with pytest.raises(UnsupportedModelError, match=f"LlamaAttention attends with {extra}"):
        model(**text_row(8, 1), past_key_values=PolicyCache(model, H2O), **{extra: torch.ones(4)})


@pytest.mark.parametrize("extra", ["indices", "block_indices"])
def test_arguments_that_sdpa_would_overlook_without_a_policy(extra: str) -> None:
    model = new_llama()
    enable(model)
    with pytest.raises(UnsupportedModelError, match=extra):
        model(**text_row(8, 1), **{extra: torch.ones(4)})


def test_a_mask_made_by_hand(model_of: ModelOf) -> None:
    ids = words(8, 1)
    mask = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    with pytest.raises(UnsupportedModelError, match=r"4-D attention mask.*2-D"):
        model_of(LLAMA)(input_ids=ids, attention_mask=mask, past_key_values=PolicyCache(model_of(LLAMA), H2O))


def test_an_encoder_style_module() -> None:
    model = new_llama()
    enable(model)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UnsupportedModelError, match="is_causal=False"):
        model(**text_row(8, 1), past_key_values=PolicyCache(model, H2O))


# Taking tokens back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [LLAMA, MIXED], ids=repr)
@pytest.mark.parametrize("way", ["prompt lookup", "assistant"])
def test_guesses_after_a_prompt_of_unknown_length(family: Family, way: str, model_of: ModelOf) -> None:
    helper = {"prompt_lookup_num_tokens": 3} if way == "prompt lookup" else {"assistant_model": new_llama()}
    cache = PolicyCache(model_of(family), H2O)
    with pytest.raises(CacheError, match=r"does not know where the prompt ends. Hint: .*inputs=inputs"):
        new_tokens(model_of(family), text_row(20, 1), past_key_values=cache, streamer=Silent(), **helper)


@pytest.mark.parametrize("family", [LLAMA, MIXED], ids=repr)
def test_crop(family: Family, model_of: ModelOf) -> None:
    cache = PolicyCache(model_of(family), H2O)
    model_of(family)(**family.batch(), past_key_values=cache)
    before = [layer.get_seq_length() for layer in cache.layers]
    says = "observed what they do to other rows" if family is LLAMA else "DynamicSlidingWindowLayer.*do not know"
    with pytest.raises(CacheError, match=rf"crop\(-3\).*{says}"):
        cache.crop(-3)
    for wrong in (10, -42):
        with pytest.raises(CacheError, match=rf"crop\({wrong}\): 41 tokens have passed, so it must be in -41 .. 0"):
            cache.crop(wrong)
    assert [layer.get_seq_length() for layer in cache.layers] == before
    cache.crop(0)
    assert not cache.is_croppable


def test_offloading(model_of: ModelOf) -> None:
    cache = PolicyCache(model_of(LLAMA), H2O)
    for move in (cache.layers[0].offload, cache.layers[0].prefetch):
        with pytest.raises(CacheError, match="without offloading"):
            move()


# Arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        (None, "kvpolicy.elastic_cache(keep=0.2)"),
        ("h2o", "kvpolicy.from_text('h2o', keep=0.2)"),
        (kvpolicy.h2o, "h2o(keep=0.2)"),
        (H2O.prefill, "Policy(prefill=pipeline, decode=pipeline)"),
        (kvpolicy.AttentionMass(), "Policy(prefill=Pipeline(schedule=KeepRatio(0.2), score=AttentionMass(...)))"),
        (kvpolicy.KeyNorm, "Policy(prefill=Pipeline(schedule=KeepRatio(0.2), score=KeyNorm(...)))"),
    ],
    ids=["nothing", "a text", "a recipe", "a pipeline", "a scorer", "a class"],
)
def test_something_that_is_no_policy(policy: Any, hint: str, model_of: ModelOf) -> None:
    with pytest.raises(PolicyError) as caught:
        PolicyCache(model_of(LLAMA), policy)
    kind = type(policy).__name__
    assert str(caught.value) == (
        f"PolicyCache(policy=...): policy must be a kvpolicy.Policy, not a {kind}. Hint: {hint}."
    )


def test_model_and_policy_in_each_others_place(model_of: ModelOf) -> None:
    swapped: Any = (H2O, model_of(LLAMA))
    with pytest.raises(
        PolicyError, match=r"not a LlamaForCausalLM\. Hint: PolicyCache\(model, policy\), the model first"
    ):
        PolicyCache(*swapped)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda model: ([H2O], {}), "PolicyCache(model=...): there is no model, only a Policy."),
        (lambda model: ([], {"policy": H2O}), "PolicyCache(model=...): there is no model, only a Policy."),
        (lambda model: (["h2o"], {"check": False}), "PolicyCache(model=...): there is no model, only a str."),
        (lambda model: ([], {}), "PolicyCache(model=...): there is no model."),
        (lambda model: ([model], {}), "PolicyCache(policy=...): there is no policy, only a LlamaForCausalLM."),
        (lambda model: ([], {"model": model}), "PolicyCache(policy=...): there is no policy, only a LlamaForCausalLM."),
    ],
    ids=["a policy", "a policy by name", "a text", "nothing", "a model", "a model by name"],
)
def test_one_of_model_and_policy_was_forgotten(given: Callable[[Any], Any], says: str, model_of: ModelOf) -> None:
    args, kwargs = given(model_of(LLAMA))
    with pytest.raises(PolicyError) as caught:
        PolicyCache(*args, **kwargs)
    assert str(caught.value) == f"{says} Hint: PolicyCache(model, policy)."


def test_a_backend_of_other_arrays(model_of: ModelOf) -> None:
    with pytest.raises(PolicyError, match=r"backend='numpy'"):
        PolicyCache(model_of(LLAMA), H2O, backend="numpy")


@pytest.mark.parametrize("segments", [None, torch.zeros(1, 4, dtype=torch.int64)])
@pytest.mark.parametrize("inputs", [{}, {"pixel_values": torch.zeros(1, 3, 8, 8)}, {"input_ids": [[1, 2]]}])
def test_inputs_without_ids(inputs: Any, segments: Tensor | None, model_of: ModelOf) -> None:
    with pytest.raises(PolicyError, match=r"need input_ids of shape \[batch, tokens\]"):
        PolicyCache(model_of(LLAVA), H2O, inputs=inputs, segments=segments)


def test_ids_in_place_of_the_inputs(model_of: ModelOf) -> None:
    ids: Any = words(8, 1)
    for announce in (
        PolicyCache(model_of(LLAMA), H2O).expect,
        lambda ids: PolicyCache(model_of(LLAMA), H2O, inputs=ids),
    ):
        with pytest.raises(
            PolicyError, match=r"mapping; got a Tensor\. Hint: inputs=inputs, not inputs\['input_ids'\]"
        ):
            announce(ids)


@pytest.mark.parametrize("segments", [torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4)])
def test_segments_of_the_wrong_kind(segments: Tensor, model_of: ModelOf) -> None:
    with pytest.raises(PolicyError, match=r"segments=.*integers, \[batch, tokens\]"):
        PolicyCache(model_of(LLAVA), H2O, segments=segments)


@pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
def test_inputs_of_another_batch(family: Family, model_of: ModelOf) -> None:
    cache = PolicyCache(model_of(family), H2O, inputs=family.even())
    with pytest.raises(PolicyError, match=r"2 batch rows, but the model runs 3.*same inputs"):
        new_tokens(model_of(family), family.batch(), past_key_values=cache, streamer=Silent())


def test_another_batch_size_in_the_same_cache(model_of: ModelOf) -> None:
    model, rows = model_of(LLAMA), text_rows()
    cache = PolicyCache(model, H2O)
    model(**rows[0], past_key_values=cache)
    with pytest.raises(CacheError, match=r"1 batch rows and was given 2.*new PolicyCache"):
        model(input_ids=words(1, 1).expand(2, -1), past_key_values=cache)


def test_a_mask_that_is_too_short(model_of: ModelOf) -> None:
    model, row = model_of(LLAMA), text_row(20, 1)
    cache = PolicyCache(model, H2O)
    model(**row, past_key_values=cache)
    with pytest.raises(PolicyError, match=r"attention_mask.*all 22 tokens"):
        model(input_ids=words(2, 1), attention_mask=torch.ones(1, 2), past_key_values=cache)


@pytest.mark.parametrize("memory", [1, 400, "0.5 KiB"])
@pytest.mark.parametrize("recipe", [kvpolicy.h2o, kvpolicy.elastic_cache, kvpolicy.streaming_llm])
def test_memory_for_not_even_one_row(recipe: Callable[..., Policy], memory: int | str, model_of: ModelOf) -> None:
    cache = PolicyCache(model_of(LLAMA), recipe(memory=memory))
    row = 2 * (12 + 12) * 4 * 3
    with pytest.raises(PolicyError, match=rf"{row} bytes.*give at least {2 * row} bytes"):
        new_tokens(model_of(LLAMA), text_row(20, 1), past_key_values=cache, streamer=Silent())
    enough = PolicyCache(model_of(LLAMA), recipe(memory=8 * row))
    assert new_tokens(model_of(LLAMA), text_row(20, 1), past_key_values=enough).shape == (1, 12)


# Stages of a user --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A scorer that goes wrong in one layer, from one token on."""

    answer: Callable[[CacheView, Step], Any]
    layer: int = 1
    seen: int = 0

    def score(self, view: CacheView, step: Step) -> Any:
        if view.layer == self.layer and step.seen.max() >= self.seen:
            return self.answer(view, step)
        return -view.xp.astype(view.positions, view.xp.float32)


def one_nan(view: CacheView, step: Step) -> Tensor:
    scores = view.positions.float()
    scores[0, 1, 3] = torch.nan
    return scores


def policy_with(scorer: Any, **stages: Any) -> Policy:
    pipeline = Pipeline(schedule=kvpolicy.KeepRatio(0.5), score=scorer, **stages)
    return Policy(prefill=pipeline, decode=pipeline)


WRONG: dict[str, tuple[Callable[[CacheView, Step], Any], str]] = {
    "NaN": (one_nan, r"scores of Broken at layer 1 are NaN.*batch row 0, head 1, row 3, 1 in all.*-inf"),
    "shape": (lambda view, step: view.positions[:, :1].float(), r"scores of Broken at layer 1.*shape \[1, 1,.*\[1, 2,"),
    "integers": (lambda view, step: view.positions, r"Broken at layer 1.*int64.*floating"),
    "nothing": (lambda view, step: None, r"Broken at layer 1.*NoneType"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("seen", [0, 30], ids=["in the prompt", "while decoding"])
def test_a_scorer_that_goes_wrong_is_named(wrong: str, seen: int, model_of: ModelOf) -> None:
    answer, says = WRONG[wrong]
    model, inputs = model_of(LLAMA), text_row(24, 1)
    good = new_tokens(model, inputs, past_key_values=PolicyCache(model, H2O))
    policy = policy_with(Broken(answer, seen=seen))
    cache = PolicyCache(model, policy)
    with pytest.raises(PlanError, match=says):
        new_tokens(model, inputs, past_key_values=cache)
    assert cache.get_seq_length() >= max(seen, 24)
    # The model and the policy are as they were.
    assert torch.equal(new_tokens(model, inputs, past_key_values=PolicyCache(model, H2O)), good)
    short = text_row(10, 2)
    if seen:
        assert new_tokens(model, short, 8, past_key_values=PolicyCache(model, policy)).shape == (1, 8)
        cache.reset()
        assert new_tokens(model, short, 8, past_key_values=cache).shape == (1, 8)


def test_unchecked_scores_are_taken_at_their_word() -> None:
    class Worthless:
        def score(self, view: CacheView, step: Step) -> Tensor:
            return torch.where(view.valid, torch.nan, 0.0)

    model = new_llama()
    enable(model)
    policy = Policy(prefill=Pipeline(schedule=kvpolicy.FixedRows(4), score=Worthless()))
    model(**text_row(9, 1), past_key_values=PolicyCache(model, policy, check=False))
    with pytest.raises(PlanError, match="scores of Worthless at layer 0 are NaN"):
        model(**text_row(9, 1), past_key_values=PolicyCache(model, policy))


def test_nan_on_padding_is_nobodys_business(model_of: ModelOf) -> None:
    """Only what could be kept must have a score."""
    model, inputs = model_of(LLAMA), LLAMA.batch()

    class OnlyValid:
        def score(self, view: CacheView, step: Step) -> Tensor:
            return torch.where(view.valid, view.positions.float(), torch.nan)

    plain = policy_with(kvpolicy.Recency())
    tokens = new_tokens(model, inputs, past_key_values=PolicyCache(model, plain))
    assert torch.equal(new_tokens(model, inputs, past_key_values=PolicyCache(model, policy_with(OnlyValid()))), tokens)


def test_an_exception_of_the_users_own_comes_through(model_of: ModelOf) -> None:
    def fail(view: CacheView, step: Step) -> Tensor:
        raise ZeroDivisionError("mine")

    model, inputs = model_of(LLAMA), text_row(24, 1)
    cache = PolicyCache(model, policy_with(Broken(fail)))
    with pytest.raises(ZeroDivisionError, match="mine"):
        new_tokens(model, inputs, past_key_values=cache)
    cache.reset()
    with pytest.raises(ZeroDivisionError, match="mine"):  # the same again, not an error about the earlier pass
        new_tokens(model, inputs, past_key_values=cache)


def test_a_missing_column_is_named_with_its_stage(model_of: ModelOf) -> None:
    class Seeing:
        def score(self, view: CacheView, step: Step) -> Tensor:
            return view.column("segment", needed_by="Seeing", hint="pass inputs= to PolicyCache.").float()

    model, inputs = model_of(LLAVA), LLAVA.batch()
    with pytest.raises(
        kvpolicy.MissingColumnError, match=r"Seeing needs column 'segment'; this cache has: count.*inputs="
    ):
        new_tokens(model, inputs, past_key_values=PolicyCache(model, policy_with(Seeing())))
    cache = PolicyCache(model, policy_with(Seeing()), inputs=inputs)
    assert new_tokens(model, inputs, past_key_values=cache).shape == (3, 12)
