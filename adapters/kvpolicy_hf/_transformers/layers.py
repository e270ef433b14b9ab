"""The layers of transformers' own cache, and which of them can be put under a policy."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from kvpolicy import UnsupportedModelError

from .config import cross_attention_layers, text_config

__all__ = ["CacheLayerMixin", "native_layers"]

_STAY = ("LinearAttentionLayer", "DummyLayer")  # kinds that stay as they are; 5.17 does not have the second


def native_layers(model: PreTrainedModel) -> list[tuple[Any, bool]]:
    """The layers that transformers itself would give this model, and whether each is full self-attention.

    Raises:
        UnsupportedModelError: if a layer is of a kind that can neither be put under a policy nor stay beside one.
    """
    config = text_config(model)
    crossing = cross_attention_layers(config)  # their rows are an image's, and do not grow with the text
    layers = []
    for index, layer in enumerate(DynamicCache(config=config).layers):
        full = type(layer) is DynamicLayer
        stays = getattr(layer, "is_sliding", False) or type(layer).__name__ in _STAY
        if not (full or stays):
            raise UnsupportedModelError(
                f"{type(model).__name__} has a layer of kind {type(layer).__name__}, which PolicyCache does not serve "
                f"yet. Hint: use this model without a PolicyCache."
            )
        layers.append((layer, full and index not in crossing))
    return layers
