"""The model, from random weights: CLIP's vision transformer, LLaVA's projector, Llama with tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from kvpolicy_bench.words import BOS, EOS, IMAGE, PAD
from kvpolicy_bench.world import World
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

__all__ = ["FULL", "TINY", "Size", "make_model"]


@dataclass(frozen=True)
class Size:
    """Widths and depths, of the vision tower first."""

    vision_width: int
    vision_mlp: int
    vision_layers: int
    vision_heads: int
    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int


FULL = Size(256, 768, 6, 8, 320, 640, 8, 8, 4)  # 11.9 million parameters
TINY = Size(96, 192, 2, 3, 128, 256, 4, 4, 2)  # 1.1 million


def make_model(world: World, size: Size) -> LlavaForConditionalGeneration:
    """A model of this world; the caller seeds torch."""
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=size.vision_mlp,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=world.side,
        patch_size=world.patch,
        projection_dim=size.vision_width,
    )
    text = LlamaConfig(
        vocab_size=len(world.vocabulary),
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=2048,
        initializer_range=0.7 * size.width**-0.5,  # Llama's 0.02 is for widths of thousands: attention would start flat
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)
