"""What a model's configuration says of its text decoder and of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "cross_attention_layers",
    "crosses_to_images",
    "expands_latents",
    "own_config",
    "placeholder_tokens",
    "text_config",
]


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the decoder whose cache is meant: what it says."""
    config: PreTrainedConfig = model.config.get_text_config(decoder=True)
    return config


def own_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The same, as the object that its modules look at: of an old encoder-decoder, `text_config` is a copy."""
    config = text_config(model)
    parts = [getattr(model.config, name, None) for name in model.config.sub_configs]
    is_copy = model.config.is_encoder_decoder and not any(config is part for part in parts)
    return model.config if is_copy else config


def crosses_to_images(model: PreTrainedModel) -> bool:
    """Whether images come to the text decoder by cross-attention, and not as tokens."""
    return bool(cross_attention_layers(text_config(model)))


def cross_attention_layers(config: PreTrainedConfig) -> Sequence[int]:
    """The numbers of the layers whose rows are an image's; empty where there are none."""
    return getattr(config, "cross_attention_layers", None) or ()


def expands_latents(model: PreTrainedModel) -> bool:
    """Whether a model may cache compressed keys and values, and expand them between cache and attention."""
    return getattr(text_config(model), "kv_lora_rank", None) is not None


def placeholder_tokens(model: PreTrainedModel, kinds: Iterable[str]) -> dict[str, int]:
    """The token that stands for a part of an ``image``, ``video``, ..., for each kind of which there is one."""
    found: dict[str, int] = {}
    for kind in kinds:
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            if isinstance(token := getattr(model.config, name, None), int):
                found.setdefault(kind, token)
    return found
