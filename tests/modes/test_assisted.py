"""Guessing tokens and taking wrong guesses back gives what decoding one by one gives: tokens, tables and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expected import Mode, modes_of
from models import FAMILIES, MIXED, Family, assert_same_tables, new_llama, new_tokens, text_row, words
from ours import POLICIES, SETTINGS, added, repeating
from plain import Plain
from transformers import PreTrainedModel

from kvpolicy import CacheError, Phase, Policy
from kvpolicy_hf import PolicyCache, enable

PlainOf = Callable[[str], Plain]
LONG = {**SETTINGS, "max_new_tokens": 20}


class Guessed:
    """Counts what `crop` takes back of the tokens that verification passes have run."""

    def __init__(self, cache: PolicyCache, patch: pytest.MonkeyPatch) -> None:
        self.rejected, self.rounds, crop = 0, 0, cache.crop

        def counting(tokens_to_remove: int) -> None:
            self.rejected, self.rounds = self.rejected - tokens_to_remove, self.rounds + 1
            crop(tokens_to_remove)

        patch.setattr(cache, "crop", counting)


def assistant(mode: Mode) -> dict[str, Any]:
    if mode.name != "assistant model":
        return dict(mode.options)
    helper = new_llama()  # without a policy it is mostly right, as a good assistant is
    helper.generation_config.num_assistant_tokens = 4
    return {"assistant_model": helper}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", modes_of("test_assisted.py::test_guesses_leave_no_trace"), ids=repr)
def test_guesses_leave_no_trace(mode: Mode, policy: str, plain_of: PlainOf, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, inputs = plain_of(policy), repeating()
    told: dict[str, list[Any]] = {"ours": [], "theirs": []}

    def cache_of(name: str) -> PolicyCache:
        def listen(layer: int, view: Any, plan: Any, step: Any) -> None:
            told[name].append((layer, step.length, plan.keep.sum(-1).tolist()))

        return PolicyCache(plain.model, plain.policy, inputs=inputs, listen=listen)

    ours, theirs = cache_of("ours"), cache_of("theirs")
    guessed = Guessed(ours, monkeypatch)
    out = plain.model.generate(**inputs, **LONG, **assistant(mode), past_key_values=ours)
    due = plain.greedy((tuple(inputs["input_ids"][0].tolist()),), 20, len(SETTINGS["suppress_tokens"]))
    assert added(out, inputs) == [due]
    assert plain.model.generate(**inputs, **LONG, past_key_values=theirs).equal(out)
    assert_same_tables(ours, theirs)
    assert sorted(told["ours"]) == sorted(told["theirs"])
    assert ours.report().tokens == theirs.report().tokens
    assert [(layer.rows, layer.evicted, layer.merged, layer.recalled) for layer in ours.report().layers] == [
        (layer.rows, layer.evicted, layer.merged, layer.recalled) for layer in theirs.report().layers
    ]
    if mode.name == "assistant model":  # of both kinds, or nothing is shown
        assert guessed.rounds < 20
        assert guessed.rejected > 0 or policy == "full"


@pytest.mark.parametrize("policy", ["full", "h2o", "ada_kv"])
@pytest.mark.parametrize("mode", modes_of("test_assisted.py::test_sampled_guesses"), ids=repr)
def test_sampled_guesses(mode: Mode, policy: str, plain_of: PlainOf) -> None:
    """Which tokens are drawn depends on the guesses, but every logit is that of the tokens before it, run plainly."""
    plain, inputs = plain_of(policy), repeating()
    torch.manual_seed(0)
    helper = {"assistant_model": new_llama(), "do_sample": True, "temperature": 1.5}
    out = plain.model.generate(
        **inputs,
        **{**LONG, **helper},
        return_dict_in_generate=True,
        output_logits=True,
        past_key_values=PolicyCache(plain.model, plain.policy, inputs=inputs),
    )
    (tokens,) = added(out.sequences, inputs)
    history = (tuple(inputs["input_ids"][0].tolist()), *((token,) for token in tokens))
    due = torch.stack([plain.logits(history[: number + 1]) for number in range(20)])
    torch.testing.assert_close(torch.cat(out.logits), due, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_sliding_windows(policy: str) -> None:
    """Layers that keep transformers' own cache are taken back with the others."""
    model = MIXED.new()
    enable(model)
    inputs = repeating()
    plain = model.generate(**inputs, **LONG, past_key_values=PolicyCache(model, POLICIES[policy], inputs=inputs))
    for helper in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": new_llama()}):
        cache = PolicyCache(model, POLICIES[policy], inputs=inputs)
        assert model.generate(**inputs, **LONG, **helper, past_key_values=cache).equal(plain)


@pytest.mark.parametrize("policy", ["full", "h2o", "elastic_cache"])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_pictures_in_the_prompt(family: Family, policy: str) -> None:
    """The prompt's own positions, segments and pixels come with the first guesses in one pass."""
    model, inputs = family.new(), family.rows()[0]
    enable(model)
    plain = new_tokens(model, inputs, 16, past_key_values=PolicyCache(model, POLICIES[policy], inputs=inputs))
    lookup = {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    cache = PolicyCache(model, POLICIES[policy], inputs=inputs)
    assert new_tokens(model, inputs, 16, past_key_values=cache, **lookup).equal(plain)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_turn_after_guesses(policy: str, plain_of: PlainOf) -> None:
    """The next call of `generate` makes no guesses: a pass of several tokens is a prompt again."""
    plain, inputs, first = plain_of(policy), repeating(), len(SETTINGS["suppress_tokens"])
    cache = PolicyCache(plain.model, plain.policy, inputs=inputs)
    (answer,) = added(plain.model.generate(**inputs, **LONG, prompt_lookup_num_tokens=3, past_key_values=cache), inputs)
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer]), words(5, 31)], dim=1)
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ours = added(plain.model.generate(**more, **SETTINGS, past_key_values=cache), more)
    history = (tuple(ids[0, :20].tolist()), *((token,) for token in answer[:-1]), tuple(ids[0, 39:].tolist()))
    assert ours == [plain.greedy(history, 8, first)]


def test_guesses_that_nobody_took_back(model: PreTrainedModel) -> None:
    """A loop of one's own must say which guesses stay, before it goes on."""
    inputs = text_row(12, 1)
    cache = PolicyCache(model, POLICIES["h2o"], inputs=inputs)
    cache.activate_past_recording()
    model(**inputs, past_key_values=cache)
    model(input_ids=words(4, 2), past_key_values=cache)
    with pytest.raises(CacheError, match=r"3 tokens that may be taken back wait.*Hint: crop\(\) after a pass"):
        model(input_ids=words(1, 3), past_key_values=cache)


def test_where_nothing_is_planned_a_prompt_may_end_anywhere(model: PreTrainedModel) -> None:
    cache = PolicyCache(model, POLICIES["full"])  # is not told of the prompt
    cache.activate_past_recording()
    model(**text_row(12, 1), past_key_values=cache)
    cache.crop(-3)
    assert cache.get_seq_length() == 9


def test_tokens_before_the_guesses_stay(model: PreTrainedModel) -> None:
    inputs = text_row(12, 1)
    cache = PolicyCache(model, POLICIES["h2o"], inputs=inputs)
    cache.activate_past_recording()
    model(**inputs, past_key_values=cache)
    model(input_ids=words(4, 2), past_key_values=cache)
    with pytest.raises(CacheError, match=r"PolicyCache.crop\(-4\) is Session.crop\(12\): AttentionMass\(\) observed"):
        cache.crop(-4)
    cache.crop(-3)
    assert cache.get_seq_length() == 13


def test_a_prompt_where_guesses_were(model: PreTrainedModel) -> None:
    """A pass that begins where the last one did, and is as long, is described anew."""
    inputs, later = text_row(12, 1), words(4, 2)
    ours, theirs = (PolicyCache(model, POLICIES["ada_kv"], inputs=inputs) for _ in range(2))
    ours.activate_past_recording()
    for cache in (ours, theirs):
        model(**inputs, past_key_values=cache)
    model(input_ids=later, past_key_values=ours)
    ours.crop(-4)
    ours.generation_begins()
    for cache in (ours, theirs):
        model(input_ids=later, past_key_values=cache)
    assert_same_tables(ours, theirs)
    assert ours.report().layers[0].rows == 9


def test_plans_of_guesses_are_not_told(model: PreTrainedModel) -> None:
    inputs, told = text_row(12, 1), list[tuple[int, Phase]]()
    policy = Policy(decode=POLICIES["elastic_cache"].decode)
    cache = PolicyCache(
        model, policy, inputs=inputs, listen=lambda layer, view, plan, step: told.append((step.length, step.phase))
    )
    cache.activate_past_recording()
    model(**inputs, past_key_values=cache)
    model(input_ids=words(4, 2), past_key_values=cache)
    assert told == [(13, Phase.DECODE)] * 3
    cache.crop(-2)
    assert told == [(13, Phase.DECODE)] * 3 + [(14, Phase.DECODE)] * 3
