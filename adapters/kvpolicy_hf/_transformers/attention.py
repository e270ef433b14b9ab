"""The attention interface: ours known by its name, a model switched to it, and what sdpa's does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from kvpolicy import UnsupportedModelError

from ..softmax import Softmax
from .config import own_config

__all__ = ["NAME", "attention_name", "plain_attention", "register", "set_text_attention", "softmax_of"]

NAME = "kvpolicy"  # of our attention implementation


def register(attention: Callable[..., Any], mask: Callable[..., Any]) -> None:
    """Make the implementation known under `NAME`; doing it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def attention_name(model: PreTrainedModel) -> str:
    """Which attention implementation the text decoder uses now."""
    return str(own_config(model)._attn_implementation)


def set_text_attention(model: PreTrainedModel, name: str) -> None:
    """Switch the text decoder's attention and nothing else.

    Raises:
        UnsupportedModelError: if the model does not look its attention up by name, or cannot use sdpa.
    """
    config = own_config(model)
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part.config is config]
    can_be_set = all(part._can_set_attn_implementation() for part in parts)  # if not, what follows says so
    # Of what sdpa cannot do, kvpolicy's attention does these two.
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    has_sinks = any(hasattr(module, "sinks") for module in model.modules())
    on_sdpa = capped or has_sinks or all(part._supports_sdpa for part in [model, *parts])
    if name == NAME and can_be_set and not on_sdpa:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot run on sdpa, and has neither soft-capped logits nor attention sinks, which "
            f"is what kvpolicy's attention can do beyond it."
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


def plain_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The sdpa attention of transformers."""
    attention = AttentionInterface()["sdpa"]
    out: tuple[Tensor, Tensor | None] = attention(module, query, key, value, mask, **kwargs)
    return out


def softmax_of(query: Tensor, scaling: float | None, options: dict[str, Any]) -> Softmax:
    """What a model asks of its attention's softmax; taken out of the options of the call."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return Softmax(scale, options.pop("softcap", None), options.pop("s_aux", None))
