"""Encoder-decoders: the self-attention of their decoder is under the policy, the attention to the encoder is not."""

from __future__ import annotations

from typing import Any

import transformers as hf
from family import DECODER, PAD, START, VOCABULARY, Family

USUAL: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None}
CROSSES = "cross-attention keeps a cache of its own: `EncoderDecoderCache(PolicyCache(...), DynamicCache())`"
GEMMA = {**DECODER, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 6, "attn_logit_softcapping": 2.0}


def bart() -> hf.BartConfig:
    """Learned positions."""
    ends = {
        f"{end}_{name}": value
        for end in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
    }
    return hf.BartConfig(
        **USUAL,
        **ends,
        d_model=48,
        max_position_embeddings=64,
        init_std=0.25,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )


def t5() -> hf.T5Config:
    """Positions as a bias of the logits."""
    return hf.T5Config(**USUAL, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=START)


def t5_gemma() -> hf.T5GemmaConfig:
    """Gemma 2 twice."""
    half = {**GEMMA, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    return hf.T5GemmaConfig(
        encoder=dict(half),
        decoder=dict(half),
        vocab_size=VOCABULARY,
        decoder_start_token_id=START,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
        attn_implementation="eager",  # up to transformers 5.17 its usual one leaves the cap out
    )


FAMILIES = [
    Family("BART", hf.BartForConditionalGeneration, bart, layers=(0, 1), notes=CROSSES),
    Family(
        "T5Gemma", hf.T5GemmaForConditionalGeneration, t5_gemma, layers=(0, 2), notes=f"logits are capped; {CROSSES}"
    ),
    Family(
        "T5",
        hf.T5ForConditionalGeneration,
        t5,
        refused="T5Attention attends with position_bias, which PolicyCache does not serve yet. Hint: use this model "
        "without a PolicyCache, or pass a 2-D attention_mask; an encoder-decoder takes its PolicyCache in an "
        "EncoderDecoderCache.",
        notes="positions are a bias of the logits, made for rows in their order",
    ),
]
