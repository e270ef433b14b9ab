"""Every family of models is served exactly, or refused before a token is produced."""

from __future__ import annotations

import checks
import pytest
import text
import torch
from every import REFUSED, SERVED
from family import Family, words

import kvpolicy
from kvpolicy_hf import PolicyCache, disable, enable

served = pytest.mark.parametrize("family", SERVED, ids=repr)


@served
def test_full_is_exact(family: Family) -> None:
    checks.full_is_exact(family)


@served
def test_mass_is_the_models_own(family: Family) -> None:
    checks.mass_is_the_models_own(family)


@served
def test_evicted_rows_are_independent(family: Family) -> None:
    checks.evicted_rows_are_independent(family)


@pytest.mark.parametrize("family", REFUSED, ids=repr)
def test_it_is_refused(family: Family) -> None:
    assert checks.refusal(family) == family.refused


# Where a family differs from a Llama there is more that could go wrong ------------------------------------------------

PECULIAR = [
    family
    for family in SERVED
    if "own cache" in family.notes
    or family.name in ("Gemma 2", "gpt-oss", "DeepSeek-V3", "Gemma 3", "PaliGemma", "BART")
]
peculiar = pytest.mark.parametrize("family", PECULIAR, ids=repr)


@peculiar
def test_merged_rows_are_independent(family: Family) -> None:
    checks.evicted_rows_are_independent(family, kvpolicy.elastic_cache(keep=0.4))


@peculiar
def test_beams(family: Family) -> None:
    """Native layers are reordered as ours are."""
    model, inputs = family.new(), family.batch()
    plain = checks.tokens_of(model, inputs, num_beams=3)
    enable(model)
    cache = PolicyCache(model, kvpolicy.full(), inputs=inputs)
    assert torch.equal(checks.tokens_of(model, inputs, cache, num_beams=3), plain)


@peculiar
def test_a_cache_serves_a_second_request(family: Family) -> None:
    model, inputs = family.new(), family.batch()
    enable(model)
    cache = PolicyCache(model, checks.EVICT, inputs=inputs)
    first = checks.tokens_of(model, inputs, cache)
    cache.reset()
    assert torch.equal(checks.tokens_of(model, inputs, cache), first)


@pytest.mark.parametrize("family", [family for family in text.FAMILIES if family in SERVED], ids=repr)
def test_mass_goes_on_while_decoding(family: Family) -> None:
    """Five tokens more, one by one, against one pass of the eager model over everything."""
    row, more = family.rows()[0], words(5, 50)
    model, eager = family.new(), family.new()
    eager.set_attn_implementation("eager")
    ids = torch.cat([row["input_ids"], more], dim=1)
    due = checks.attention_of(eager, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    enable(model)
    cache = PolicyCache(model, checks.WATCH, inputs=row)
    checks.forward(model, row, cache)
    for token in more.split(1, dim=1):
        checks.forward(model, {"input_ids": token}, cache)
    for number, view in checks.tables(family, cache):
        received = due[number].float().sum(2).unflatten(1, (view.shape[1], -1)).mean(2)
        places = view.positions[0]
        held = view.valid[0]
        mass = view.columns["mass"].data[0]
        # Not closer, because a recurrent layer beside ours rounds otherwise when it goes token by token.
        torch.testing.assert_close(mass[held], received[0].gather(-1, places.clamp(min=0))[held], atol=1e-4, rtol=1e-3)


@served
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_disable_gives_the_attention_back(family: Family, attention: str) -> None:
    model = family.new()
    try:
        model.set_attn_implementation(attention)
    except ValueError:
        assert attention != "eager", "not every family has all of them"
    before = checks.attention_names(model)
    enable(model)
    assert checks.attention_names(model) != before
    disable(model)
    assert checks.attention_names(model) == before
