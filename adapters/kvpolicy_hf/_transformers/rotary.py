"""Rotary embeddings: the module that a decoder has, and the attention that it is given to."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .config import text_config
from .layers import native_layers

__all__ = ["RotaryEmbedding", "hidden_states", "rotary_parts"]

_FIXED = ("default", "linear", "llama3", "yarn")  # kinds of frequencies that do not depend on the prompt's length
_CACHE_ARGUMENTS = ("cache", "past_key_values", "layer_past")  # what attention modules call the cache


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
    weights = itertools.chain(attention.parameters(), attention.buffers())  # quantised ones need not be parameters
    width, device = int(text_config(model).hidden_size), next(weights).device
    return torch.arange(tokens * width, device=device).sin().reshape(1, tokens, width).to(model.dtype)


def _arguments(module: torch.nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _kind(attention: torch.nn.Module) -> tuple[Any, ...]:
    """Modules of one kind run the same code: their plain attributes are equal, but for their number."""
    plain = {name: value for name, value in vars(attention).items() if isinstance(value, bool | int | float | str)}
    plain.pop("layer_idx")
    return type(attention), *sorted(plain.items())
