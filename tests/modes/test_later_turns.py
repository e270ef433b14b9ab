"""A conversation in one cache is its passes by hand: each turn goes on from the tokens seen, and is compacted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expected import Mode, modes_of
from models import Inputs, text_row, words
from ours import COUNT, POLICIES, SETTINGS, added
from plain import Plain

import kvpolicy
from kvpolicy import CacheError, Pipeline, Policy
from kvpolicy_hf import IMAGE, PolicyCache

PlainOf = Callable[[str], Plain]


def so_far(inputs: Inputs, *parts: list[int]) -> Inputs:
    """What a chat passes to `generate`: everything that was said."""
    ids = torch.cat([inputs["input_ids"], *(torch.tensor([part], dtype=torch.int64) for part in parts)], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", modes_of("test_later_turns.py::test_turns"), ids=repr)
def test_turns(mode: Mode, policy: str, plain_of: PlainOf) -> None:
    plain, first = plain_of(policy), len(SETTINGS["suppress_tokens"])
    single, announced = "one token" in mode.name, "expect" in mode.call
    inputs = text_row(14, 1)
    cache = PolicyCache(plain.model, plain.policy, inputs=inputs)
    history: tuple[tuple[int, ...], ...] = (tuple(inputs["input_ids"][0].tolist()),)
    for turn in range(3):
        if turn and announced:
            cache.expect(inputs)
        out = plain.model.generate(**inputs, **SETTINGS, **mode.options, past_key_values=cache)
        (answer,) = added(out, inputs)
        assert answer == plain.greedy(history, COUNT, first)
        # The last token of an answer has not been through the model yet: it begins the next turn.
        question = [] if single else words(5, 70 + turn)[0].tolist()
        history = (*history, *((token,) for token in answer[:-1]), (answer[-1], *question))
        inputs = so_far(inputs, answer, question)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] - 1 - len(question)


def test_layers_of_different_length(plain_of: PlainOf) -> None:
    """Each layer has its own mask, also in a pass of several tokens over a compacted table."""
    prefill = Pipeline(
        schedule=kvpolicy.FixedRows(9),
        score=kvpolicy.Recency(),
        allocate=kvpolicy.Pyramid(),
        select=kvpolicy.TopK(first=1, last=1),
    )
    plain = Plain(plain_of("full").model, Policy(prefill=prefill))
    inputs = text_row(20, 4)
    cache = PolicyCache(plain.model, plain.policy, inputs=inputs)
    (answer,) = added(plain.model.generate(**inputs, **SETTINGS, past_key_values=cache), inputs)
    assert len({layer.rows for layer in cache.report().layers}) == 3
    more = so_far(inputs, answer, [50, 60, 70])
    (again,) = added(plain.model.generate(**more, **SETTINGS, past_key_values=cache), more)
    history = (tuple(inputs["input_ids"][0].tolist()), *((token,) for token in answer[:-1]), (answer[-1], 50, 60, 70))
    assert again == plain.greedy(history, COUNT, len(SETTINGS["suppress_tokens"]))


def test_a_turn_that_was_announced_brings_its_own_segments(plain_of: PlainOf) -> None:
    model = plain_of("full").model
    seen: list[Any] = []
    policy = Policy(prefill=Pipeline(schedule=kvpolicy.FixedRows(4), score=kvpolicy.Recency()))
    inputs = text_row(8, 1)
    cache = PolicyCache(
        model, policy, inputs=inputs, listen=lambda layer, view, plan, step: seen.append(view.columns["segment"].data)
    )
    model(**inputs, past_key_values=cache)
    more = so_far(inputs, words(4, 5)[0].tolist())
    pictures = torch.zeros(1, 12, dtype=torch.int64)
    pictures[0, 9:11] = IMAGE
    cache.expect(more, segments=pictures)
    model(input_ids=more["input_ids"][:, 8:], past_key_values=cache)
    assert [int((segment == IMAGE).sum()) for segment in seen] == [0] * 3 + [4] * 3  # two tokens in each of two heads


def test_an_announcement_of_what_has_passed(plain_of: PlainOf) -> None:
    model, inputs = plain_of("h2o").model, text_row(8, 1)
    cache = PolicyCache(model, POLICIES["h2o"], inputs=inputs)
    model(**inputs, past_key_values=cache)
    with pytest.raises(CacheError, match=r"expect\(8\): 8 tokens have passed.*Hint: count all tokens so far"):
        cache.expect(inputs)
