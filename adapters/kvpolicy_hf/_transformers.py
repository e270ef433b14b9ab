"""Everything that depends on the version of transformers, in one place. Supported: 5.17 up to 5.23."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.masking_utils import causal_mask_function, sdpa_mask

from kvpolicy import UnsupportedModelError

__all__ = [
    "NAME",
    "Cache",
    "CacheLayerMixin",
    "PreTrainedModel",
    "attention_name",
    "is_plain_causal",
    "native_layers",
    "padding_mask",
    "plain_attention",
    "register",
    "sdpa_mask",
    "set_text_attention",
    "text_config",
]

NAME = "kvpolicy"  # of our attention implementation
POLICY_OFFSET = -1  # what our layers answer as the offset of their keys: no native cache has a negative one


def register(attention: Callable[..., Any], mask: Callable[..., Any]) -> None:
    """Make the implementation known under `NAME`; doing it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the decoder whose cache is meant."""
    config: PreTrainedConfig = model.config.get_text_config(decoder=True)
    return config


def attention_name(model: PreTrainedModel) -> str:
    """Which attention implementation the text decoder uses now."""
    return str(text_config(model)._attn_implementation)


def set_text_attention(model: PreTrainedModel, name: str) -> None:
    """Switch the text decoder's attention and nothing else.

    Raises:
        UnsupportedModelError: if the model does not look its attention up by name, or cannot use sdpa.
    """
    config = text_config(model)
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config]
    can_be_set = all(part._can_set_attn_implementation() for part in parts)  # if not, what follows says so
    # Up to 5.17 a model with soft-capped logits says that it supports sdpa, which leaves the cap out.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if name == NAME and can_be_set and (capped or not all(part._supports_sdpa for part in [model, *parts])):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot run on sdpa (soft-capped logits, attention sinks, or no support for it), "
            f"and kvpolicy's attention is built on it."
        )
    if config is model.config:
        wanted: str | dict[str, str] = name
    else:
        keys = [key for key in model.config.sub_configs if getattr(model.config, key, None) is config]
        wanted = dict.fromkeys(keys, name)
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as error:
        raise UnsupportedModelError(f"{type(model).__name__} refused the attention {name!r}: {error}") from error
    if attention_name(model) != name:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not take its attention from transformers' AttentionInterface, so its cache "
            f"cannot be put under a policy."
        )


def native_layers(model: PreTrainedModel) -> list[tuple[Any, bool]]:
    """The layers that transformers itself would give this model, and whether each is plain full attention."""
    layers = DynamicCache(config=text_config(model)).layers
    return [(layer, type(layer) is DynamicLayer) for layer in layers]


def is_plain_causal(mask_function: Callable[..., Any]) -> bool:
    """Whether a mask function is the causal one, without anything laid over it."""
    return mask_function is causal_mask_function


def plain_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The sdpa attention of transformers."""
    attention = AttentionInterface()["sdpa"]
    out: tuple[Tensor, Tensor | None] = attention(module, query, key, value, mask, **kwargs)
    return out


def padding_mask(mask: Tensor | None, start: int, length: int, batch: int, device: torch.device) -> Tensor:
    """The part of a 2-D padding mask that speaks of this pass, bool [B, Q]."""
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    return mask[:, start : start + length].to(device=device, dtype=torch.bool)
