"""Taking tokens back: where it is refused, and what layers that stay transformers' own have to record for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvpolicy import CacheError, Policy

from ._transformers import PreTrainedModel

__all__ = ["check_crop", "check_recording", "crop_native", "stop_recording"]


def check_recording(policy: Policy, model: PreTrainedModel | None, *, length: int, prompt_length: int) -> None:
    """Raise unless a cache can let `generate` take tokens back from now on.

    Args:
        policy: the cache's.
        model: the cache's; None: it is gone.
        length: tokens that have passed.
        prompt_length: tokens of the prompt; 0: that is not known.

    Raises:
        CacheError: if it cannot.
    """
    if model is not None and model.config.is_encoder_decoder:
        raise CacheError(
            "transformers' EncoderDecoderCache takes no tokens back from a PolicyCache, as assisted and "
            "prompt-lookup decoding need. Hint: generate without them."
        )
    if length:
        raise CacheError(
            f"this cache holds {length} tokens, which assisted and prompt-lookup decoding would "
            f"feed again. Hint: a new PolicyCache, or generate without them."
        )
    if not prompt_length and (policy.prefill is not None or policy.decode is not None):
        raise CacheError(
            "assisted and prompt-lookup decoding run the prompt and the first guesses in one pass, and this cache "
            "does not know where the prompt ends. Hint: PolicyCache(model, policy, inputs=inputs)."
        )


def check_crop(tokens_to_remove: int, length: int, native: Sequence[Any]) -> None:
    """Raise unless so many of ``length`` tokens can be taken back, as far as can be told without the tables.

    Raises:
        CacheError: if there are not so many, or one of these layers has not recorded what it was before them.
    """
    if not -length <= tokens_to_remove <= 0:
        raise CacheError(
            f"crop({tokens_to_remove}): {length} tokens have passed, so it must be in {-length} .. 0. "
            f"Hint: crop(-1) takes the last token back."
        )
    lost = [type(layer).__name__ for layer in _recording(native) if not (layer.record_past and layer.is_croppable)]
    if tokens_to_remove and lost:
        raise CacheError(
            f"crop({tokens_to_remove}): the model has layers of kind {lost[0]}, which do not know what they were "
            f"before these tokens. Hint: generate without taking tokens back."
        )


def crop_native(native: Iterable[Any], tokens_to_remove: int) -> None:
    """Take the last ``-tokens_to_remove`` tokens back from those that have recorded what they were before."""
    for layer in _recording(native):
        if layer.record_past:
            layer.crop(tokens_to_remove)


def stop_recording(native: Iterable[Any]) -> None:
    """From now on no token is taken back from these layers."""
    for layer in _recording(native):
        layer.record_past = False


def _recording(native: Iterable[Any]) -> list[Any]:
    """Those that must record their past, or tokens could not be taken back from them."""
    return [layer for layer in native if hasattr(layer, "record_past")]
