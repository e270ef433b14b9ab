"""Put a model's text attention under policies, and take it out again."""

from __future__ import annotations

from ._transformers import PreTrainedModel
from ._transformers.attention import NAME, attention_name, register, set_text_attention
from .attention import mask, policy_attention

__all__ = ["disable", "enable", "is_enabled"]

_PREVIOUS = "_kvpolicy_previous_attention"


def enable(model: PreTrainedModel) -> None:
    """Let `PolicyCache` work on this model. Idempotent; without a `PolicyCache` the model runs as under sdpa.

    Where sdpa cannot do what the model does (capped logits, attention sinks), it runs as under eager, without the
    matrix of queries by rows. Only the text decoder is switched: a vision tower keeps its attention; an older
    encoder-decoder has one configuration for both, and its encoder runs as under sdpa too. Nothing else is changed, and
    other models are not touched.

    Args:
        model: a text or vision-language model of transformers, as `from_pretrained` gives it.

    Raises:
        UnsupportedModelError: if the model does not take its attention from transformers' interface.
    """
    if is_enabled(model):
        return
    previous = attention_name(model)
    register(policy_attention, mask)
    set_text_attention(model, NAME)
    setattr(model, _PREVIOUS, previous)


def disable(model: PreTrainedModel) -> None:
    """Give the model its previous attention back. Does nothing on a model that is not enabled.

    Args:
        model: as it was given to `enable`.
    """
    if is_enabled(model):
        set_text_attention(model, getattr(model, _PREVIOUS, "sdpa"))


def is_enabled(model: PreTrainedModel) -> bool:
    """Whether `enable` is in force.

    Args:
        model: of transformers; it is not changed.
    """
    return attention_name(model) == NAME
