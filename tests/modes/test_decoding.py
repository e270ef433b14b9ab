"""Whatever `generate` does with logits, they are those of every row run plainly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expected import Mode, modes_of
from models import Inputs
from ours import COUNT, POLICIES, ROWS, SETTINGS, added, padded
from plain import Plain
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteriaList

from kvpolicy_hf import PolicyCache

PlainOf = Callable[[str], Plain]
each_policy = pytest.mark.parametrize("policy", POLICIES)


def both(plain: Plain, inputs: Inputs, **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The new tokens of a cache under the policy, and of the policy run plainly, from the same seed."""
    torch.manual_seed(0)
    cache = PolicyCache(plain.model, plain.policy, inputs=inputs)
    ours = plain.model.generate(**inputs, **{**SETTINGS, **options}, past_key_values=cache)
    options.pop("prefill_chunk_size", None)  # without a cache there are no chunks
    torch.manual_seed(0)
    theirs = plain.generator(inputs).generate(**inputs, **{**SETTINGS, **options}, use_cache=False)
    return added(ours, inputs), added(theirs, inputs)


@each_policy
@pytest.mark.parametrize("mode", modes_of("test_decoding.py::test_it_is_plain_decoding"), ids=repr)
def test_it_is_plain_decoding(mode: Mode, policy: str, plain_of: PlainOf) -> None:
    ours, theirs = both(plain_of(policy), padded(), **mode.options)
    assert ours == theirs


def test_plain_decoding_is_what_a_loop_by_hand_gives(plain_of: PlainOf) -> None:
    """Of the reference itself: without `generate`."""
    plain, first = plain_of("h2o"), len(SETTINGS["suppress_tokens"])
    by_hand = [plain.greedy((tuple(row["input_ids"][0].tolist()),), COUNT, first) for row in ROWS]
    assert by_hand == both(plain, padded())[0]


def test_every_policy_is_felt(plain_of: PlainOf) -> None:
    """Of the policies: each gives tokens of its own, so that one cannot be taken for another."""
    tokens = {name: str(both(plain_of(name), padded())[1]) for name in POLICIES}
    assert len(set(tokens.values())) == len(POLICIES)


def test_some_rows_end_and_others_go_on(plain_of: PlainOf) -> None:
    """Of the examples themselves."""
    (early,) = (m for m in modes_of("test_decoding.py::test_it_is_plain_decoding") if m.name.startswith("early end in"))
    ours, _ = both(plain_of("h2o"), padded(), **early.options)
    lengths = {sum(token > 0 for token in row) for row in ours}
    assert len(lengths) > 1


@each_policy
@pytest.mark.parametrize("mode", modes_of("test_decoding.py::test_allowed_tokens"), ids=repr)
def test_allowed_tokens(mode: Mode, policy: str, plain_of: PlainOf) -> None:
    def allowed(row: int, ids: Tensor) -> list[int]:
        return list(range(10 + int(ids[-1]) % 5, 150, 3 + row))

    ours, theirs = both(plain_of(policy), padded(), prefix_allowed_tokens_fn=allowed)
    assert ours == theirs


@pytest.mark.parametrize("mode", modes_of("test_decoding.py::test_stopping_criteria"), ids=repr)
def test_stopping_criteria(mode: Mode, plain_of: PlainOf) -> None:
    criteria = StoppingCriteriaList([lambda ids, scores, **_: ids.shape[1] > torch.tensor([24, 26])])
    ours, theirs = both(plain_of("h2o"), padded(), stopping_criteria=criteria)
    assert ours == theirs
    assert len(ours[0]) < COUNT


@pytest.mark.parametrize("mode", modes_of("test_decoding.py::test_guidance"), ids=repr)
def test_guidance(mode: Mode, plain_of: PlainOf) -> None:
    """The prompt that is steered away from has a cache of transformers' own in both."""
    ours, theirs = both(plain_of("h2o"), ROWS[0], **mode.options)
    assert ours == theirs


@each_policy
@pytest.mark.parametrize("mode", modes_of("test_decoding.py::test_embeddings"), ids=repr)
def test_embeddings(mode: Mode, policy: str, plain_of: PlainOf) -> None:
    plain, ids = plain_of(policy), ROWS[0]["input_ids"]
    embeddings = plain.model.get_input_embeddings()(ids)
    cache = PolicyCache(plain.model, plain.policy)
    ours = plain.model.generate(inputs_embeds=embeddings, **SETTINGS, past_key_values=cache)
    assert ours.tolist()[0] == plain.greedy((tuple(ids[0].tolist()),), COUNT, len(SETTINGS["suppress_tokens"]))


@each_policy
@pytest.mark.parametrize("mode", modes_of("test_decoding.py::test_inference_mode"), ids=repr)
def test_inference_mode(mode: Mode, policy: str, plain_of: PlainOf, model: PreTrainedModel) -> None:
    plain, inputs = plain_of(policy), ROWS[0]
    due = plain.greedy((tuple(inputs["input_ids"][0].tolist()),), COUNT, len(SETTINGS["suppress_tokens"]))
    for options in ({}, {"prompt_lookup_num_tokens": 3}):
        with torch.inference_mode():
            cache = PolicyCache(model, plain.policy, inputs=inputs)
            ours = model.generate(**inputs, **SETTINGS, **options, past_key_values=cache)
        assert added(ours, inputs) == [due]
