"""What is run both by one process and by several that share the heads: a tiny model, prompts, policies."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import kvpolicy
from kvpolicy import (
    AdaptiveHeads,
    AttentionMass,
    ByStrengthAndSkew,
    FixedRows,
    Fold,
    KeepRatio,
    LikePrompt,
    Mean,
    MemoryBudget,
    MostSimilar,
    Pipeline,
    Policy,
    TopK,
    WindowMass,
)
from kvpolicy_hf import PolicyCache, enable

__all__ = ["POLICIES", "PROMPTS", "new_model", "run"]

MASS = Pipeline(schedule=KeepRatio(0.4), score=AttentionMass(heads="mean"), select=TopK(first=1, recent=0.3))
ADAPTIVE = Pipeline(schedule=FixedRows(9), score=WindowMass(window=4), allocate=AdaptiveHeads(floor=0.1))

POLICIES: dict[str, Policy] = {
    "full": kvpolicy.full(),
    "h2o": kvpolicy.h2o(keep=0.4),  # each head by itself
    "elastic_cache": kvpolicy.elastic_cache(keep=0.4),  # a mean over heads, and merging
    "mean": Policy(prefill=MASS, decode=MASS),
    "tova": kvpolicy.tova(rows=9),  # a mean over heads after every token
    "adaptive": Policy(prefill=ADAPTIVE, decode=ADAPTIVE),  # heads compete, and are ragged
    "adaptive, then mean": Policy(
        prefill=ADAPTIVE,
        decode=Pipeline(schedule=KeepRatio(0.3), score=AttentionMass(heads="mean"), allocate=LikePrompt()),
    ),
    "bytes": Policy(prefill=Pipeline(schedule=MemoryBudget("30KB"), score=AttentionMass())),
    "d2o": kvpolicy.d2o(keep=0.4),  # variances over heads and layers, and merging with a gate
    "air_cache": kvpolicy.air_cache(keep=0.4),
    "skew": Policy(prefill=Pipeline(schedule=KeepRatio(0.5), score=AttentionMass(), allocate=ByStrengthAndSkew())),
    "merging": Policy(
        prefill=Pipeline(schedule=FixedRows(8), score=AttentionMass(), merge=Fold(MostSimilar(), Mean())),
        count_bias=True,
    ),
    "slots": Policy(prefill=MASS, decode=MASS, positions="slots"),
}


def new_model(kv_heads: int = 4) -> LlamaForCausalLM:
    """Random weights, so sharp that one wrong row changes the tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=152,
        hidden_size=16 * kv_heads,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2 * kv_heads,
        num_key_value_heads=kv_heads,
        initializer_range=0.25,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def _prompts() -> dict[str, torch.Tensor]:
    """Two prompts, the shorter one padded on the left."""
    ids = torch.randint(4, 152, (2, 29), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    return {"input_ids": torch.where(mask > 0, ids, 0), "attention_mask": mask}


PROMPTS = _prompts()


def run(model: Any, policy: Policy) -> dict[str, Any]:
    """Tokens, and what each layer, batch row and head of this process holds in the end: positions, oldest first."""
    enable(model)
    cache = PolicyCache(model, policy, inputs=PROMPTS)
    tokens = model.generate(**PROMPTS, past_key_values=cache, max_new_tokens=12, do_sample=False)
    held = []
    for layer in range(len(cache.session)):
        view = cache.session._layers[layer].store.view()
        held.append(
            [
                [sorted(places[valid].tolist()) for places, valid in zip(heads, flags, strict=True)]
                for heads, flags in zip(view.positions, view.valid, strict=True)
            ]
        )
    return {"tokens": tokens.tolist(), "held": held}
