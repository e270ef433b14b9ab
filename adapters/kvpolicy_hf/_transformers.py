"""Everything that depends on the version of transformers, in one place. Supported: 5.17 up to 5.23."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
    "RotaryEmbedding",
    "attention_name",
    "hidden_states",
    "is_plain_causal",
    "native_layers",
    "padding_mask",
    "plain_attention",
    "register",
    "rotary_parts",
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


# Rotary embeddings ----------------------------------------------------------------------------------------------------

_FIXED = ("default", "linear", "llama3", "yarn")  # kinds of frequencies that do not depend on the prompt's length
_CACHE_ARGUMENTS = ("past_key_values", "layer_past")  # what attention modules call the cache


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """What a model's attention turns its queries and keys with.

    Attributes:
        module: cosines and sines of positions.
        function: ``apply_rotary_pos_emb`` of the attention's own python module.
    """

    module: torch.nn.Module
    function: Callable[..., Any]

    def angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, N, R] of int64 [B, N], as x: of length one, since yarn's factor is for attention."""
        cos, sin = self.module(x, positions)
        scaling = float(getattr(self.module, "attention_scaling", 1.0))
        return cos.to(x) / scaling, sin.to(x) / scaling

    def apply(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, H, N, R], turned."""
        turned: Tensor = self.function(x, x[:, :0], cos, sin)[0]
        return turned

    def attend(self, attention: torch.nn.Module, hidden: Tensor, positions: Tensor, cache: object) -> None:
        """Run an attention module on hidden states [B, N, E], past any hooks."""
        places = tuple(part.to(hidden.device) for part in self.module(hidden, positions))
        name = next(name for name in _CACHE_ARGUMENTS if name in _arguments(attention))
        attention.forward(hidden_states=hidden, position_embeddings=places, attention_mask=None, **{name: cache})


def rotary_parts(model: PreTrainedModel) -> tuple[RotaryEmbedding, list[torch.nn.Module]] | str:
    """A plain rotary embedding: one position a token, and frequencies that are the same throughout.

    Returns:
        It, and full-attention modules of the text decoder, one of each kind; or what the model has instead.
    """
    config = text_config(model)
    own = [part for part in model.modules() if getattr(part, "config", None) is config]
    rotaries = [part for part in own if hasattr(part, "inv_freq")]
    if len(rotaries) != 1:
        return f"has {len(rotaries) or 'no'} rotary embedding{'s' * (len(rotaries) > 1)} for all its layers"
    rotary = rotaries[0]
    kind: Any = getattr(rotary, "rope_type", None)
    if kind not in _FIXED:
        return f"has rotary frequencies of the kind {kind!r}, which change with the length of the prompt or the layer"
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}) or hasattr(rotary, "mrope_section"):
        return "has rotary positions of several dimensions (M-RoPE)"
    full = [plain for _, plain in native_layers(model)]
    attentions = [
        part
        for part in own
        if isinstance(index := getattr(part, "layer_idx", None), int)
        and {"position_embeddings", "attention_mask"} <= _arguments(part)
        and any(name in _arguments(part) for name in _CACHE_ARGUMENTS)
        and index < len(full)
        and full[index]
    ]
    served = {part.layer_idx for part in attentions}
    if not served or served != {index for index, plain in enumerate(full) if plain}:
        return "has attention that is not given its rotary embedding by the decoder"
    function = getattr(sys.modules[type(attentions[0]).__module__], "apply_rotary_pos_emb", None)
    if function is None or list(inspect.signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return "applies its rotary embedding in a way of its own"
    kinds = {_kind(part): part for part in attentions}
    return RotaryEmbedding(rotary, function), list(kinds.values())


def hidden_states(model: PreTrainedModel, attention: torch.nn.Module, tokens: int) -> Tensor:
    """What might come into an attention module, [1, N, E], always the same."""
    width, device = int(text_config(model).hidden_size), next(attention.parameters()).device
    return torch.arange(tokens * width, device=device).sin().reshape(1, tokens, width).to(model.dtype)


def _arguments(module: torch.nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _kind(attention: torch.nn.Module) -> tuple[Any, ...]:
    """Modules of one kind run the same code: their plain attributes are equal, but for their number."""
    plain = {name: value for name, value in vars(attention).items() if isinstance(value, bool | int | float | str)}
    plain.pop("layer_idx")
    return type(attention), *sorted(plain.items())
