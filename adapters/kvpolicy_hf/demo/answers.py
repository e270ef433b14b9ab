"""Ask one question under one policy, and measure it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from kvpolicy import Policy

from .. import PolicyCache
from .._transformers import as_argument
from ..plots.history import Fate
from ..plots.watch import Watch

__all__ = ["Answer", "ask"]

GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said under a policy, and what its cache cost.

    Attributes:
        text: the answer.
        rows: cache rows at the end, per layer, averaged over heads.
        tokens: tokens seen, prompt and answer.
        kv_bytes: bytes of keys and values held at the end.
        full_kv_bytes: what a cache that keeps everything holds.
        new_tokens: tokens generated.
        seconds: time of the whole `generate`, prefill included.
        fates: per layer, what became of the prompt's tokens when the prompt was complete.
    """

    text: str
    rows: tuple[float, ...]
    tokens: int
    kv_bytes: int
    full_kv_bytes: int
    new_tokens: int
    seconds: float
    fates: tuple[Fate, ...] = ()


def ask(model: Any, processor: Any, inputs: Any, policy: Policy, *, max_new_tokens: int) -> Answer:
    """Answer greedily under the policy."""
    watch = Watch()
    cache = PolicyCache(model, policy, inputs=inputs, listen=watch)
    began = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(**inputs, **as_argument(cache), max_new_tokens=max_new_tokens, **GREEDY)
    prompt = inputs["input_ids"].shape[1]
    new = output[0, prompt:].tolist()  # waits for the device
    seconds = time.perf_counter() - began
    report = cache.report()
    history = watch.history(report)
    return Answer(
        text=processor.decode(new, skip_special_tokens=True).strip(),
        rows=tuple(float(layer.rows) for layer in report.layers),
        tokens=report.tokens[0],
        kv_bytes=report.kv_bytes,
        full_kv_bytes=report.full_kv_bytes,
        new_tokens=len(new),
        seconds=seconds,
        fates=tuple(history.fate(layer, after=prompt) for layer in range(history.layers)),
    )
