"""Which tokens of a prompt are image and which are text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kvpolicy import PolicyError

from ._transformers import PreTrainedModel

__all__ = ["IMAGE", "TEXT", "prompt_ids", "segments"]

TEXT, IMAGE = 0, 1


def prompt_ids(inputs: Mapping[str, Any]) -> Tensor:
    """The tokens of a prompt, [B, T].

    Raises:
        PolicyError: if there are no ``input_ids``.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise PolicyError(
            f"inputs: need input_ids of shape [batch, tokens]; got {sorted(inputs)}. "
            f"Hint: pass what the processor or tokenizer returned with return_tensors='pt'."
        )
    return ids


def segments(inputs: Mapping[str, Any], model: PreTrainedModel) -> Tensor:
    """int64 [B, T]: `IMAGE` where the prompt holds an image token, `TEXT` elsewhere.

    Args:
        inputs: what goes into `generate`; needs ``input_ids``.
        model: its configuration names the image token.

    Raises:
        PolicyError: if there are no ``input_ids``.
    """
    ids = prompt_ids(inputs)
    image = getattr(model.config, "image_token_id", None)
    if image is None:
        image = getattr(model.config, "image_token_index", None)
    return (ids == image).long() * IMAGE if image is not None else ids.new_full(ids.shape, TEXT)
