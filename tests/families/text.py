"""Language models."""

from __future__ import annotations

from typing import Any

import transformers as hf
from family import DECODER, Family

SLIDING = {"sliding_window": 6, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
HEAD = {"head_dim": 12}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOOKS_NOTHING_UP = (
    "does not take its attention from transformers' AttentionInterface, so its cache cannot be put under a policy."
)
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
EXPANDED = "the table holds expanded keys and values, which take more memory a row than the model's latents"
SINKS = "attention sinks take part in the softmax"
KEEP_THEIR_OWN = "sliding layers keep transformers' own cache"


def text(name: str, kind: str, *, config: str = "", **options: Any) -> Family:
    """A family whose configuration takes the usual names, besides what ``options`` say."""
    about = {key: options.pop(key) for key in ("layers", "notes", "refused") if key in options}
    make = getattr(hf, config or kind.replace("ForCausalLM", "Config"))
    return Family(name, getattr(hf, kind), lambda: make(**{**DECODER, **options}), **about)


def gpt(name: str, kind: str, **options: Any) -> Family:
    """A family of the time before grouped heads."""
    about = {key: options.pop(key) for key in ("notes", "refused") if key in options}
    make = getattr(hf, kind.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config"))
    usual = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
    return Family(name, getattr(hf, kind), lambda: make(**{**usual, **options}), **about)


FAMILIES = [
    text("Llama", "LlamaForCausalLM"),
    text("Mistral", "MistralForCausalLM", sliding_window=None),
    text(
        "Mistral, sliding window",
        "MistralForCausalLM",
        sliding_window=6,
        refused="MistralForCausalLM has no full-attention layer to put under a policy.",
        notes="every layer slides: nothing is left for a policy",
    ),
    text("Mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    text("Qwen2", "Qwen2ForCausalLM"),
    text(
        "Qwen2, sliding window",
        "Qwen2ForCausalLM",
        use_sliding_window=True,
        **SLIDING,
        layers=(0, 2),
        notes=KEEP_THEIR_OWN,
    ),
    text("Qwen3", "Qwen3ForCausalLM", **HEAD),
    text("Qwen3-MoE", "Qwen3MoeForCausalLM", **HEAD, **EXPERTS, num_experts=4),
    text(
        "Qwen3-Next",
        "Qwen3NextForCausalLM",
        **HEAD,
        **EXPERTS,
        num_experts=4,
        shared_expert_intermediate_size=32,
        layer_types=["full_attention", "linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layers=(0, 2),
        notes="linear-attention layers keep transformers' own cache",
    ),
    text(
        "LFM2",
        "Lfm2ForCausalLM",
        layer_types=["full_attention", "conv", "full_attention"],
        layers=(0, 2),
        notes="convolutions keep transformers' own cache",
    ),
    text(
        "Phi-3",
        "Phi3ForCausalLM",
        partial_rotary_factor=0.5,
        notes="rotary positions on a part of each head",
    ),
    text("Gemma", "GemmaForCausalLM", **HEAD),
    text(
        "Gemma 2",
        "Gemma2ForCausalLM",
        **HEAD,
        **SLIDING,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=2.0,
        attn_implementation="eager",  # up to transformers 5.17 its usual one leaves the cap out
        layers=(0, 2),
        notes=f"logits are capped; {KEEP_THEIR_OWN}",
    ),
    text(
        "Gemma 3, text",
        "Gemma3ForCausalLM",
        config="Gemma3TextConfig",
        **HEAD,
        **SLIDING,
        query_pre_attn_scalar=12,
        layers=(0, 2),
        notes=KEEP_THEIR_OWN,
    ),
    text("nanochat", "NanoChatForCausalLM"),
    text(
        "Granite", "GraniteForCausalLM", attention_multiplier=0.3, residual_multiplier=0.7, notes="a scale of its own"
    ),
    text("OLMo 2", "Olmo2ForCausalLM"),
    text("Cohere", "CohereForCausalLM", notes="rotary positions on neighbours"),
    text(
        "Cohere 2",
        "Cohere2ForCausalLM",
        **SLIDING,
        layers=(0, 2),
        notes=f"full layers have no positions; {KEEP_THEIR_OWN}",
    ),
    text("SmolLM3", "SmolLM3ForCausalLM", no_rope_layers=[1, 0, 1], notes="some layers have no positions"),
    text(
        "GLM-4", "Glm4ForCausalLM", **HEAD, partial_rotary_factor=0.5, notes="rotary positions on a part of each head"
    ),
    text("StableLM", "StableLmForCausalLM", partial_rotary_factor=0.5, notes="rotary positions on a part of each head"),
    text(
        "gpt-oss",
        "GptOssForCausalLM",
        **HEAD,
        **SLIDING,
        num_local_experts=4,
        num_experts_per_tok=2,
        layers=(0, 2),
        notes=f"{SINKS}; {KEEP_THEIR_OWN}",
    ),
    text(
        "MiMo-V2-Flash",
        "MiMoV2FlashForCausalLM",
        **HEAD,
        **EXPERTS,
        **SLIDING,
        v_head_dim=8,
        n_routed_experts=4,
        layers=(0, 2),
        notes=f"values are shorter than keys; {SINKS}; {KEEP_THEIR_OWN}",
    ),
    text("DeepSeek-V2", "DeepseekV2ForCausalLM", **LATENT, notes=EXPANDED),
    text("DeepSeek-V3", "DeepseekV3ForCausalLM", **LATENT, notes=EXPANDED),
    text(
        "DeepSeek-V3.2",
        "DeepseekV32ForCausalLM",
        **LATENT,
        refused="DeepseekV32Attention attends with indices, which PolicyCache does not serve yet. Hint: use this model "
        "without a PolicyCache, or pass a 2-D attention_mask; an encoder-decoder takes its PolicyCache in an "
        "EncoderDecoderCache.",
        notes="each query chooses the rows that it attends to",
    ),
    text(
        "Nemotron-H",
        "NemotronHForCausalLM",
        **HEAD,
        **EXPERTS,
        num_hidden_layers=4,
        layers_block_type=["attention", "mamba", "moe", "attention"],
        mamba_num_heads=4,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        moe_shared_expert_intermediate_size=32,
        layers=(0, 3),
        notes="recurrent layers keep transformers' own cache, others have none",
    ),
    gpt("GPT-NeoX", "GPTNeoXForCausalLM", notes="rotary positions on a part of each head"),
    gpt("GPT-2", "GPT2LMHeadModel", notes="learned positions"),
    gpt("OPT", "OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=48, init_std=0.25, notes="learned positions"),
    gpt(
        "Falcon",
        "FalconForCausalLM",
        refused=f"FalconForCausalLM {LOOKS_NOTHING_UP}",
    ),
    gpt(
        "BLOOM",
        "BloomForCausalLM",
        refused=f"BloomForCausalLM {LOOKS_NOTHING_UP}",
    ),
    text(
        "Falcon-H1",
        "FalconH1ForCausalLM",
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        refused="FalconH1ForCausalLM has a layer of kind LinearAttentionAndFullAttentionLayer, which PolicyCache does "
        "not serve yet. Hint: use this model without a PolicyCache.",
        notes="each layer has attention and a recurrent state",
    ),
    text(
        "DiffLlama",
        "DiffLlamaForCausalLM",
        refused="DiffLlamaAttention attends more than once to the keys of layer 0, which PolicyCache does not serve "
        "yet. Hint: use this model without a PolicyCache.",
        notes="attends twice to the same keys",
    ),
]
