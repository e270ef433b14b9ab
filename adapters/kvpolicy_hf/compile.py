"""Decode with a policy as fast as without one: shapes that never change, so that a pass is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvpolicy import PolicyError

from ._transformers import PreTrainedModel
from .cache import PolicyCache

__all__ = ["compile_decode"]


def compile_decode(model: PreTrainedModel, cache: PolicyCache, *, max_length: int) -> Callable[..., Any]:
    """Let a request decode compiled: from the end of its prompt on, in tables whose shapes never change.

    Afterwards ``model.generate(**inputs, cache=cache)`` runs the prompt as ever and compiles the passes that
    decode, by transformers' own compile support: on a GPU, or where a ``compile_config`` of the generation says so.
    Another request of the same shapes, with a cache of its own, runs the same compiled code.

    Args:
        model: the model that the cache was made for.
        cache: before its first token.
        max_length: tokens that the request may have, padding and the prompt included; there is room for the rows of
            that many, and no more.

    Returns:
        What `generate` calls for every token, for loops of one's own: the compiled model, called with ``input_ids``
        [B, 1], ``position_ids`` [B, 1] and ``cache=cache`` (before transformers 5.24: ``past_key_values``), after the
        prompt was run by the model itself.

    Raises:
        CacheError: if the cache holds tokens, or its rows cannot stay in place.
        PolicyError: if max_length is no positive integer, or the policy does not let the host know the tables to come;
            names the stage.
        UnsupportedModelError: if the model has layers that are not under the policy.
    """
    if not isinstance(cache, PolicyCache):
        raise PolicyError(f"compile_decode(cache={type(cache).__name__}): cache must be a PolicyCache.")
    cache.compile_up_to(max_length, model)
    return model.get_compiled_call(model.generation_config.compile_config)
