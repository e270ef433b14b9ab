"""The policies under which the modes are tried, and the prompts."""

from __future__ import annotations

from typing import Any

import torch
from models import FIRST_WORD, Inputs, batch, text_row
from torch import Tensor

import kvpolicy
from kvpolicy import Policy

__all__ = ["COUNT", "POLICIES", "ROWS", "SETTINGS", "added", "padded", "repeating"]

POLICIES: dict[str, Policy] = {
    "full": kvpolicy.full(),
    "h2o": kvpolicy.h2o(keep=0.4),  # observes every token, and drops a row after most
    "elastic_cache": kvpolicy.elastic_cache(rows=9),  # merges, at a constant number of rows
    "keep_kv": kvpolicy.keep_kv(keep=0.4),  # merges while decoding; counts are in the attention
    "adore": kvpolicy.adore(rows=9),  # rows come back from the host
    "ada_kv": kvpolicy.ada_kv(rows=9, window=4),  # acts on prompts only; heads of different lengths
    "slots": Policy(prefill=kvpolicy.k_norm(rows=9).prefill, positions="slots"),  # keys and queries are turned
}
COUNT = 8  # tokens to generate
ROWS: list[Inputs] = [text_row(14, 1), text_row(21, 2)]
SETTINGS: dict[str, Any] = {"max_new_tokens": COUNT, "do_sample": False, "suppress_tokens": list(range(FIRST_WORD))}


def padded() -> Inputs:
    """Both prompts, the shorter one padded on the left."""
    return batch(ROWS)


def repeating() -> Inputs:
    """A prompt that says the same several times, so that there is something to look up."""
    ids = text_row(7, 1)["input_ids"].repeat(1, 3)[:, :20]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def added(out: Tensor, inputs: Inputs) -> list[list[int]]:
    """The tokens behind the prompt."""
    tokens: list[list[int]] = out[:, inputs["input_ids"].shape[1] :].tolist()
    return tokens
