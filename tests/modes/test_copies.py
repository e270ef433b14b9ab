"""One system prompt, several requests: every copy goes its own way, and what comes later is compressed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from expected import Mode, modes_of
from models import Inputs, text_row, words
from ours import COUNT, POLICIES, SETTINGS, added
from plain import Plain

from kvpolicy_hf import PolicyCache

PlainOf = Callable[[str], Plain]
SYSTEM = text_row(16, 11)


def request(seed: int) -> Inputs:
    ids = torch.cat([SYSTEM["input_ids"], words(9, seed)], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def prefilled(plain: Plain) -> PolicyCache:
    cache = PolicyCache(plain.model, plain.policy, inputs=SYSTEM)
    plain.model(**SYSTEM, past_key_values=cache)
    return cache


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", modes_of("test_copies.py::test_copies_are_independent"), ids=repr)
def test_copies_are_independent(mode: Mode, policy: str, plain_of: PlainOf) -> None:
    plain = plain_of(policy)
    shared = prefilled(plain)
    copies = {seed: copy.deepcopy(shared) for seed in (20, 21)}
    for seed, cache in [*copies.items(), (22, shared)]:
        inputs = request(seed)
        ours = added(plain.model.generate(**inputs, **SETTINGS, past_key_values=cache), inputs)
        ids = inputs["input_ids"][0].tolist()
        assert ours == [plain.greedy((tuple(ids[:16]), tuple(ids[16:])), COUNT, len(SETTINGS["suppress_tokens"]))]


@pytest.mark.parametrize("policy", ["h2o", "elastic_cache", "keep_kv", "adore", "ada_kv", "slots"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_later_context_is_compressed(policy: str, chunk: int | None, plain_of: PlainOf) -> None:
    plain, inputs = plain_of(policy), request(23)
    cache = copy.deepcopy(prefilled(plain))
    cache.expect(inputs)
    settings = {**SETTINGS, "max_new_tokens": 1, "prefill_chunk_size": chunk}
    plain.model.generate(**inputs, **settings, past_key_values=cache)
    budget = 10 if policy in ("h2o", "keep_kv") else 9
    assert {layer.rows for layer in cache.report().layers} == {budget}
