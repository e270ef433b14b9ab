"""A small vision-language model with random weights, and a padded batch of two prompts with a picture each."""

from __future__ import annotations

import pytest
import torch
from stock import HEADS, LAYERS
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from kvpolicy_hf import enable

PAD = (0, 4)  # tokens on the left of each prompt


@pytest.fixture(scope="module")
def model(device: str) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2 * HEADS,
        "num_key_value_heads": HEADS,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 12,
        "patch_size": 4,
        "projection_dim": 16,
    }
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    made = LlavaForConditionalGeneration(config).eval().to(device)
    enable(made)
    return made


@pytest.fixture(scope="module")
def inputs(device: str) -> dict[str, Tensor]:
    """Two prompts with nine image tokens each, the second shorter by four."""
    draw = torch.Generator().manual_seed(3)
    rows = []
    for pad in PAD:
        words = torch.randint(3, 64, (12 - pad,), generator=draw)
        row = torch.cat([words[:3], torch.full((9,), 2), words[3:]])
        rows.append(torch.nn.functional.pad(row, (pad, 0)))
    ids = torch.stack(rows)
    pixels = torch.randn(2, 3, 12, 12, generator=draw)
    made = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}
    return {name: data.to(device) for name, data in made.items()}
