"""Under eviction: batches, chunks, beams, turns, copies."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from models import (
    FAMILIES,
    IMAGE_TOKEN,
    LLAMA,
    LLAVA,
    MIXED,
    QWEN2,
    QWEN_VL,
    Family,
    Inputs,
    assert_same_tables,
    batch,
    continue_with,
    feed,
    new_llama,
    new_tokens,
    tables,
    text_row,
    text_rows,
    words,
)
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import kvpolicy
from kvpolicy import Policy
from kvpolicy_hf import PolicyCache, enable

ModelOf = Callable[[Family], PreTrainedModel]

POLICIES: dict[str, Policy] = {
    "elastic_cache, keep": kvpolicy.elastic_cache(keep=0.3),
    "elastic_cache, rows": kvpolicy.elastic_cache(rows=12),
    "h2o, keep": kvpolicy.h2o(keep=0.3),
    "h2o, rows": kvpolicy.h2o(rows=12),
    "streaming_llm, keep": kvpolicy.streaming_llm(keep=0.3),
    "streaming_llm, rows": kvpolicy.streaming_llm(rows=12),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def budget(policy: Policy, seen: int) -> int:
    """Rows that one of these policies may hold."""
    assert policy.decode is not None
    schedule = policy.decode.schedule
    if isinstance(schedule, kvpolicy.FixedRows):
        return min(schedule.rows, seen)
    assert isinstance(schedule, kvpolicy.KeepRatio)
    return max(round(schedule.keep * seen), 1)


@each_policy
@pytest.mark.parametrize("family", [*FAMILIES, MIXED], ids=repr)
def test_a_row_of_a_padded_batch_is_the_row_alone(family: Family, policy: Policy, model_of: ModelOf) -> None:
    model, rows = model_of(family), family.rows()
    inputs = batch(rows)
    cache = PolicyCache(model, policy, inputs=inputs)
    tokens = new_tokens(model, inputs, 20, past_key_values=cache)
    lengths = [row["input_ids"].shape[1] for row in rows]
    assert cache.report().tokens == tuple(length + 19 for length in lengths)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = PolicyCache(model, policy, inputs=row)
        assert torch.equal(new_tokens(model, row, 20, past_key_values=alone)[0], tokens[number])
        padding = max(lengths) - length
        for mine, single in zip(tables(cache), tables(alone), strict=True):
            held = budget(policy, length + 19)
            assert mine.valid[number].sum(-1).tolist() == single.valid[0].sum(-1).tolist() == [held] * 2
            assert torch.equal(mine.positions[number, :, :held] - padding, single.positions[0])


@each_policy
@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("family", [LLAMA, QWEN2, MIXED], ids=repr)
def test_a_prompt_in_chunks_is_the_prompt_whole(family: Family, chunk: int, policy: Policy, model_of: ModelOf) -> None:
    model, inputs = model_of(family), family.batch()
    whole, chunked = (PolicyCache(model, policy, inputs=inputs) for _ in range(2))
    tokens = new_tokens(model, inputs, past_key_values=whole)
    assert torch.equal(new_tokens(model, inputs, past_key_values=chunked, prefill_chunk_size=chunk), tokens)
    assert_same_tables(chunked, whole)
    report = whole.report()
    assert report.evicted + report.merged > 0


@pytest.mark.parametrize("recipe", [kvpolicy.elastic_cache, kvpolicy.h2o, kvpolicy.streaming_llm])
@pytest.mark.parametrize("family", [LLAMA, LLAVA, QWEN_VL, MIXED], ids=repr)
def test_keeping_everything_by_ratio_is_plain_beam_search(
    family: Family, recipe: Callable[..., Policy], model_of: ModelOf
) -> None:
    model, inputs = model_of(family), family.batch()
    plain = new_tokens(model, inputs, num_beams=3, num_return_sequences=3)
    cache = PolicyCache(model, recipe(keep=1.0), inputs=inputs)
    assert torch.equal(new_tokens(model, inputs, num_beams=3, num_return_sequences=3, past_key_values=cache), plain)


@each_policy
@pytest.mark.parametrize("family", [LLAMA, LLAVA, MIXED], ids=repr)
def test_reordered_beams_hold_what_their_own_tokens_give(family: Family, policy: Policy, model_of: ModelOf) -> None:
    """Beams are shuffled within each prompt after every token; each must look like its own history fed straight."""
    model, beams, steps = model_of(family), 3, 9
    inputs = family.batch()
    prompts = inputs["input_ids"].shape[0]
    expanded = batch([row for row in family.rows() for _ in range(beams)])
    shuffled = PolicyCache(model, policy, inputs=inputs)
    generator = torch.Generator().manual_seed(3)
    history = torch.zeros(prompts * beams, 0, dtype=torch.int64)
    feed(model, shuffled, expanded, history)
    for _ in range(steps):
        tokens = torch.randint(4, 150, (prompts * beams, 1), generator=generator)
        continue_with(model, shuffled, expanded["attention_mask"], tokens)
        inside = torch.randint(beams, (prompts, beams), generator=generator)
        order = (inside + beams * torch.arange(prompts)[:, None]).flatten()
        shuffled.reorder_cache(order)
        history = torch.cat([history, tokens], dim=1)[order]
    straight = PolicyCache(model, policy, inputs=inputs)
    feed(model, straight, expanded, history)
    assert_same_tables(shuffled, straight)
    last = torch.randint(4, 150, (prompts * beams, 1), generator=generator)
    after = [continue_with(model, cache, expanded["attention_mask"], last) for cache in (shuffled, straight)]
    torch.testing.assert_close(*after, atol=1e-4, rtol=1e-4)


@each_policy
def test_beam_scores_are_those_of_the_sequences(policy: Policy, model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.batch()
    out = model.generate(
        **inputs,
        max_new_tokens=10,
        num_beams=3,
        num_return_sequences=3,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        past_key_values=PolicyCache(model, policy, inputs=inputs),
    )
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    assert len({tuple(row) for row in tokens.tolist()}) == 9
    expanded = batch([row for row in LLAMA.rows() for _ in range(3)])
    logits = feed(model, PolicyCache(model, policy), expanded, tokens)[:, :-1]
    scores = logits.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2)) / tokens.shape[1]
    torch.testing.assert_close(out.sequences_scores, scores, atol=1e-4, rtol=1e-4)


@each_policy
def test_batch_rows_can_be_selected_and_repeated(policy: Policy, model_of: ModelOf) -> None:
    """Also in the middle of a prompt: the segments of what is still to come go with their rows."""
    model, inputs = model_of(LLAVA), LLAVA.batch()
    text = {**inputs, "input_ids": inputs["input_ids"].clone()}
    del text["pixel_values"]
    segments = (text["input_ids"] == IMAGE_TOKEN).long()
    text["input_ids"][segments.bool()] = 7  # words in place of pictures, so that the prompt can be fed in parts
    halves = [{name: t[:, :20] for name, t in text.items()}, {**text, "input_ids": text["input_ids"][:, 20:]}]

    def run(rows: list[int], change: Callable[[PolicyCache], None], first: list[int]) -> PolicyCache:
        cache = PolicyCache(model, policy, inputs={"input_ids": text["input_ids"][first]}, segments=segments[first])
        model(**{name: t[first] for name, t in halves[0].items()}, past_key_values=cache)
        change(cache)
        model(**{name: t[rows] for name, t in halves[1].items()}, past_key_values=cache)
        return cache

    picked = run([2, 0], lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [0, 1, 2])
    assert_same_tables(picked, run([2, 0], lambda cache: None, [2, 0]))
    twice = run([1, 1, 0, 0], lambda cache: cache.batch_repeat_interleave(2), [1, 0])
    assert_same_tables(twice, run([1, 1, 0, 0], lambda cache: None, [1, 1, 0, 0]))
    assert "segment" in tables(picked)[0].columns


class Uneven:
    """An allocator: the first head gets twice what the second gets."""

    whole_model = False

    def allocate(self, rows: Any, layers: Sequence[kvpolicy.Scored], step: kvpolicy.Step) -> list[Any]:
        more = (4 * rows + 2) // 3
        return [np.stack([more, 2 * rows - more], axis=1) for _ in layers]


def uneven(keep: float) -> Policy:
    pipeline = kvpolicy.Pipeline(
        schedule=kvpolicy.KeepRatio(keep),
        score=kvpolicy.AttentionMass(),
        allocate=Uneven(),
        select=kvpolicy.TopK(last=1),
    )
    return Policy(prefill=pipeline, decode=pipeline)


@pytest.mark.parametrize("policy", [*POLICIES.values(), uneven(0.3)], ids=[*POLICIES, "uneven heads"])
@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
def test_decoding_attends_to_the_rows_kept_and_no_others(policy: Policy, padded: bool) -> None:
    """Against the plain model under a mask written out by hand from the rows that the cache said it held.

    One layer, since a mask is the same for all layers; merged values come from the cache itself.
    """
    model, plain = new_llama(num_hidden_layers=1), new_llama(num_hidden_layers=1)
    enable(model)
    inputs = LLAMA.batch() if padded else LLAMA.even()
    count, length = inputs["input_ids"].shape
    cache, full = PolicyCache(model, policy), DynamicCache()
    empty = torch.zeros(count, 0, dtype=torch.int64)
    first = feed(model, cache, inputs, empty)
    torch.testing.assert_close(feed(plain, full, inputs, empty), first)
    for number in range(10):
        (view,) = tables(cache)
        seen = torch.zeros(count, 2, length + number + 1, dtype=torch.bool)
        places = torch.where(view.valid, view.positions, length + number)
        seen.scatter_(-1, places, True)[..., -1] = True
        if policy.prefill is not None and isinstance(policy.prefill.merge, kvpolicy.Fold):
            for name in ("keys", "values"):
                merged, old = getattr(view, name), getattr(full.layers[0], name)
                spot = torch.where(view.valid, view.positions, old.shape[2])[..., None].expand_as(merged)
                old.copy_(torch.nn.functional.pad(old, (0, 0, 0, 1)).scatter(2, spot, merged)[:, :, :-1])
        token = torch.cat([words(1, 300 + 7 * number + row) for row in range(count)])
        so_far = torch.nn.functional.pad(inputs["attention_mask"], (0, number), value=1)
        ours = continue_with(model, cache, so_far, token)
        at = inputs["attention_mask"].sum(-1, keepdim=True) + number
        mask = seen.repeat_interleave(2, dim=1)[:, :, None]
        theirs = plain(input_ids=token, attention_mask=mask, position_ids=at, past_key_values=full).logits[:, -1]
        torch.testing.assert_close(ours[:, 0], theirs, atol=1e-4, rtol=1e-4)


# Turns -------------------------------------------------------------------------------------------------------------


def second_turn(inputs: Inputs, answer: Tensor, question: Tensor) -> Inputs:
    """Everything so far and a new question, as a chat passes it; pictures are in the cache already."""
    more = torch.cat([answer, question], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, more.shape[1]), value=1)
    return {"input_ids": torch.cat([inputs["input_ids"], more], dim=1), "attention_mask": mask}


@pytest.mark.parametrize("family", [*FAMILIES, MIXED], ids=repr)
def test_a_second_turn_under_full_is_the_plain_second_turn(family: Family, model_of: ModelOf) -> None:
    model, inputs = model_of(family), family.batch()
    question = torch.cat([words(6, 70 + number) for number in range(3)])

    def chat(cache: Any) -> Tensor:
        answer = new_tokens(model, inputs, past_key_values=cache)
        again = new_tokens(model, second_turn(inputs, answer, question), past_key_values=cache)
        return torch.cat([answer, again], dim=1)

    plain = chat(DynamicCache(config=model.config.get_text_config()))
    assert torch.equal(chat(PolicyCache(model, kvpolicy.full(), inputs=inputs)), plain)


@each_policy
@pytest.mark.parametrize("family", [LLAMA, LLAVA, QWEN_VL], ids=repr)
def test_a_second_turn_goes_on_from_the_tokens_seen(family: Family, policy: Policy, model_of: ModelOf) -> None:
    model, inputs = model_of(family), family.batch()
    cache = PolicyCache(model, policy, inputs=inputs)
    answer = new_tokens(model, inputs, 8, past_key_values=cache)
    length = inputs["input_ids"].shape[1]
    assert cache.get_seq_length() == length + 7
    assert max(layer.most for layer in cache.report().layers) < length
    question = torch.cat([words(5, 80 + number) for number in range(3)])
    places = []
    rotary = next(part for name, part in model.named_modules() if name.endswith("rotary_emb") and "vis" not in name)
    hook = rotary.register_forward_hook(lambda part, args, kwargs, out: places.append(kwargs), with_kwargs=True)
    turn = second_turn(inputs, answer, question)
    try:
        again = new_tokens(model, turn, 6, past_key_values=cache)
    finally:
        hook.remove()
    assert again.shape == (3, 6)
    assert cache.get_seq_length() == length + 8 + 5 + 5
    if family is not QWEN_VL:  # there rotary positions are not arrival indices
        first = places[0]["position_ids"]
        counted = (turn["attention_mask"].cumsum(-1) - 1)[:, length + 7 :]
        assert torch.equal(first.expand_as(counted), counted)
    for view in tables(cache):
        assert view.positions.amax((1, 2)).tolist() == [length + 17] * 3
        for number, seen in enumerate(cache.report().tokens):
            assert view.valid[number].sum(-1).tolist() == [budget(policy, seen)] * 2
            assert len(set(view.positions[number, 0, : budget(policy, seen)].tolist())) == budget(policy, seen)


@each_policy
def test_a_later_question_is_compacted_like_a_prompt(policy: Policy, model_of: ModelOf) -> None:
    """A second turn runs the prefill pipeline over old and new rows together, once."""
    model, inputs = model_of(LLAMA), LLAMA.even()
    plans: list[tuple[int, kvpolicy.Phase]] = []
    cache = PolicyCache(
        model, policy, inputs=inputs, listen=lambda layer, view, plan, step: plans.append((layer, step.phase))
    )
    new_tokens(model, inputs, 1, past_key_values=cache)
    assert plans == [(layer, kvpolicy.Phase.PREFILL) for layer in range(3)]
    plans.clear()
    question = words(9, 90).expand(2, -1)
    new_tokens(model, second_turn(inputs, inputs["input_ids"][:, :0], question), 1, past_key_values=cache)
    assert plans == [(layer, kvpolicy.Phase.PREFILL) for layer in range(3)]
    assert cache.report().layers[0].most == budget(policy, 38)


# Requests ----------------------------------------------------------------------------------------------------------


@each_policy
@pytest.mark.parametrize("family", [LLAMA, QWEN_VL, MIXED], ids=repr)
def test_requests_do_not_touch_each_other(family: Family, policy: Policy, model_of: ModelOf) -> None:
    model, one, two = model_of(family), family.rows()[0], family.batch()

    def run(inputs: Inputs) -> Tensor:
        return new_tokens(model, inputs, past_key_values=PolicyCache(model, policy, inputs=inputs))

    alone = run(two)
    first = run(one)
    assert torch.equal(run(two), alone)
    assert torch.equal(run(one), first)


@each_policy
@pytest.mark.parametrize("family", [LLAMA, LLAVA, MIXED], ids=repr)
def test_a_reset_cache_is_a_new_one(family: Family, policy: Policy, model_of: ModelOf) -> None:
    model, inputs = model_of(family), family.batch()
    cache = PolicyCache(model, policy, inputs=inputs)
    first = new_tokens(model, inputs, past_key_values=cache, num_beams=2)
    before = cache.report()
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.report().kv_bytes == cache.report().evicted == 0
    assert torch.equal(new_tokens(model, inputs, past_key_values=cache, num_beams=2), first)
    assert cache.report() == before


def test_a_reset_cache_knows_nothing_of_the_last_pass(model_of: ModelOf) -> None:
    """Two prompts of one pass each and of the same length, padded differently."""
    model, inputs = model_of(LLAMA), LLAMA.batch()
    turned = {name: data.flip(0) for name, data in inputs.items()}
    cache, fresh = (PolicyCache(model, kvpolicy.h2o(keep=0.3)) for _ in range(2))
    model(**inputs, past_key_values=cache)
    cache.reset()
    model(**turned, past_key_values=cache)
    model(**turned, past_key_values=fresh)
    assert_same_tables(cache, fresh)


@pytest.mark.parametrize("policy", [kvpolicy.full(), *POLICIES.values()], ids=["full", *POLICIES])
@pytest.mark.parametrize("family", [LLAMA, MIXED], ids=repr)
def test_copies_of_a_prefilled_cache_are_independent(family: Family, policy: Policy, model_of: ModelOf) -> None:
    """One system prompt, several requests."""
    model, system = model_of(family), text_row(24, 11)

    def prefilled() -> PolicyCache:
        cache = PolicyCache(model, policy, inputs=system)
        model(**system, past_key_values=cache)
        return cache

    def request(cache: PolicyCache, seed: int) -> Tensor:
        ids = torch.cat([system["input_ids"], words(10, seed)], dim=1)
        return new_tokens(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, past_key_values=cache)

    shared = prefilled()
    copies = [copy.deepcopy(shared) for _ in range(2)]
    assert copies[0].session.policy is policy
    for seed, copied in enumerate(copies, start=20):
        assert torch.equal(request(copied, seed), request(prefilled(), seed))
    assert_same_tables(shared, prefilled())
    assert shared.report() == prefilled().report()
    assert torch.equal(request(shared, 30), request(prefilled(), 30))


def test_a_cache_that_is_let_go_frees_its_rows_at_once(model_of: ModelOf) -> None:
    """Not when the garbage collector happens to come: on a GPU that is too late."""
    model, inputs = model_of(LLAMA), LLAMA.batch()
    for policy in (kvpolicy.full(), kvpolicy.h2o(keep=0.3), kvpolicy.elastic_cache(rows=9)):
        gc.collect()
        gc.disable()
        try:
            cache = PolicyCache(model, policy, inputs=inputs)
            new_tokens(model, inputs, 4, past_key_values=cache)
            alive = weakref.ref(cache), weakref.ref(cache.session._layers[0].store)
            del cache
            assert [ref() for ref in alive] == [None, None]
        finally:
            gc.enable()


def test_different_policies_run_side_by_side(model_of: ModelOf) -> None:
    """Two requests of different policies, token by token in turns."""
    model, rows = model_of(LLAMA), text_rows()[:2]
    tokens = [words(6, 60), words(6, 61)]
    policies = [kvpolicy.h2o(rows=9), kvpolicy.elastic_cache(keep=0.4)]
    alone = [
        feed(model, PolicyCache(model, policy), row, token)[:, 1:]
        for policy, row, token in zip(policies, rows, tokens, strict=True)
    ]
    caches = [PolicyCache(model, policy) for policy in policies]
    for cache, row in zip(caches, rows, strict=True):
        model(**row, past_key_values=cache)
    for step in range(6):
        for which in (0, 1):
            got = continue_with(model, caches[which], rows[which]["attention_mask"], tokens[which][:, step : step + 1])
            assert torch.equal(got[:, 0], alone[which][:, step])
