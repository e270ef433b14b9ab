"""The caches that are compared, by name. Knows kvpolicy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import DynamicCache, StaticCache

import kvpolicy
from kvpolicy import Policy
from kvpolicy_hf import PolicyCache, compile_decode, disable, enable

__all__ = ["KEEP", "POLICIES", "Make", "dynamic", "policed", "static", "steady"]

KEEP = 0.2

POLICIES: Mapping[str, Policy] = {
    "elastic_cache": kvpolicy.elastic_cache(keep=KEEP),
    "streaming_llm": kvpolicy.streaming_llm(keep=KEEP),
    "h2o": kvpolicy.h2o(keep=KEEP),
    "tova": kvpolicy.tova(keep=KEEP),
    "snapkv": kvpolicy.snapkv(keep=KEEP),
}

Make = Callable[[Any], Any]  # a fresh cache for a model, which is enabled or disabled as the cache needs it


def dynamic(model: Any) -> Any:
    """What generate uses by default: it concatenates at every step."""
    disable(model)
    return DynamicCache(config=model.config)


def static(slots: int) -> Make:
    """All slots from the start."""

    def make(model: Any) -> Any:
        disable(model)
        return StaticCache(config=model.config, max_cache_len=slots)

    return make


def policed(policy: Policy, backend: str | None = None) -> Make:
    """A policy's cache, on the backend that the device suggests, or on this one."""

    def make(model: Any) -> Any:
        enable(model)
        return PolicyCache(model, policy) if backend is None else PolicyCache(model, policy, backend=backend)

    return make


def steady(policy: Policy, most: int) -> Make:
    """The same, for decoding in place up to ``most`` tokens: compiled or in a CUDA graph."""

    def make(model: Any) -> Any:
        cache = policed(policy)(model)
        compile_decode(model, cache, max_length=most)
        return cache

    return make
