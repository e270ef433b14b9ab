"""Which tokens of a prompt are text, and which stand for an image, a video or a sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kvpolicy import AUDIO, IMAGE, TEXT, VIDEO, PolicyError

from ._transformers import PreTrainedModel
from ._transformers.config import crosses_to_images, placeholder_tokens

__all__ = ["AUDIO", "IMAGE", "TEXT", "VIDEO", "prompt_ids", "segments"]

_KINDS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}
_MEDIA = ("pixel_values", "pixel_values_videos", "input_features")


def prompt_ids(inputs: Mapping[str, Any], model: PreTrainedModel) -> Tensor:
    """The tokens of a prompt that go through the decoder, [B, T].

    An encoder-decoder's are its ``decoder_input_ids``, and where there are none the one token that `generate` starts
    from.

    Raises:
        PolicyError: if there are no ``input_ids``.
    """
    if model.config.is_encoder_decoder:
        if "decoder_input_ids" in inputs:
            return _ids(inputs, "decoder_input_ids")
        batch = len(next((data for data in inputs.values() if isinstance(data, Tensor)), ()))
        return torch.zeros(batch, 1, dtype=torch.int64)
    return _ids(inputs, "input_ids")


def segments(inputs: Mapping[str, Any], model: PreTrainedModel) -> Tensor:
    """int64 [B, T]: `IMAGE`, `VIDEO` or `AUDIO` where a token of the prompt stands for a part of one, `TEXT` elsewhere.

    What a model gets by cross-attention has no rows in the cache of its text: there everything is `TEXT`.

    Args:
        inputs: what goes into `generate`; needs ``input_ids``.
        model: its configuration names the tokens that stand for something else.

    Raises:
        PolicyError: if there are no ``input_ids``; or if there is an image, video or sound, and no token that the
            configuration names for it.
    """
    ids = prompt_ids(inputs, model)
    made = torch.full_like(ids, TEXT, dtype=torch.int64)
    if model.config.is_encoder_decoder or crosses_to_images(model):
        return made
    tokens = placeholder_tokens(model, _KINDS)
    for name, token in tokens.items():
        made[ids == token] = _KINDS[name]
    media = [name for name in _MEDIA if _holds_something(inputs.get(name))]
    if media and not bool((made != TEXT).any()):
        raise PolicyError(
            f"inputs bring {', '.join(media)}, and none of their tokens stands for it: the configuration of "
            f"{type(model).__name__} names {tokens or 'no such token'}. Hint: PolicyCache(segments=...)."
        )
    return made


def _holds_something(media: Any) -> bool:
    """All zeros are how processors pad a batch of which some rows have fewer images."""
    return bool(media.any()) if isinstance(media, Tensor) else media is not None


def _ids(inputs: Mapping[str, Any], name: str) -> Tensor:
    ids = inputs.get(name)
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise PolicyError(
            f"inputs: need {name} of shape [batch, tokens]; got {sorted(inputs)}. "
            f"Hint: pass what the processor or tokenizer returned with return_tensors='pt'."
        )
    return ids
