"""Stages of a user's own, written as the documentation says, running inside `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from models import (
    IMAGE_TOKEN,
    LLAMA,
    LLAVA,
    QWEN_VL,
    Family,
    batch,
    continue_with,
    new_llama,
    new_tokens,
    tables,
    words,
)
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from kvpolicy import (
    CacheView,
    FixedRows,
    ImportanceScorer,
    KeepRatio,
    Phase,
    Pipeline,
    Plan,
    Policy,
    Scored,
    Scores,
    Selection,
    Step,
)
from kvpolicy_hf import IMAGE, TEXT, PolicyCache, enable, segments

ModelOf = Callable[[Family], PreTrainedModel]


@dataclass(frozen=True)
class LoudValues:
    """Keep rows whose values are loud: they move the output most when attended to."""

    power: float = 1.0

    def score(self, view: CacheView, step: Step) -> Scores:
        return view.xp.linalg.vector_norm(view.values, axis=-1) ** self.power


@dataclass(frozen=True)
class LoudValuesByProtocol(ImportanceScorer):
    """The same, for a type checker."""

    power: float = 1.0

    def score(self, view: CacheView, step: Step, /) -> Scores:
        return view.xp.linalg.vector_norm(view.values, axis=-1) ** self.power


class IntoTheOldest:
    """A merger: what is dropped is averaged into the oldest row that stays, values only."""

    def merge(self, scored: Scored, selection: Selection, step: Step) -> Plan:
        xp, keep = scored.view.xp, selection.keep
        leaves = scored.view.valid & ~keep
        last = torch.iinfo(torch.int64).max
        oldest = torch.where(keep, scored.view.positions, last).argmin(-1, keepdim=True)
        into = xp.where(leaves, oldest, xp.full_like(oldest, -1))[..., None]
        share = 1.0 / (1.0 + leaves.sum(-1, keepdim=True).float())
        weight = share[..., None].expand(into.shape)
        is_oldest = torch.zeros_like(keep).scatter(-1, oldest, True)
        return Plan(keep, into, weight, torch.where(is_oldest, share, 1.0), merge_keys=False)


@dataclass(frozen=True)
class Sparing:
    """A scheduler: thin out to a few rows whenever so many tokens have come, leave alone in between."""

    every: int
    rows: int

    def budget(self, step: Step) -> int | None:
        return self.rows if step.phase is Phase.PREFILL or int(step.seen[0]) % self.every == 0 else None


def decode_with(prefill: Pipeline) -> Policy:
    return Policy(prefill=prefill, decode=prefill)


# Scorers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", [LoudValues(), LoudValuesByProtocol(power=2.0)], ids=["plain", "protocol"])
@pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
def test_a_scorer_of_ten_lines(scorer: Any, family: Family, model_of: ModelOf) -> None:
    model, rows = model_of(family), family.rows()
    policy = decode_with(Pipeline(schedule=KeepRatio(0.4), score=scorer))
    cache = PolicyCache(model, policy, inputs=batch(rows))
    model(**batch(rows), past_key_values=cache)
    whole = PolicyCache(model, kvpolicy.full())
    model(**batch(rows), past_key_values=whole)
    for view, everything in zip(tables(cache), tables(whole), strict=True):
        loudness = everything.values.norm(dim=-1)
        for number, row in enumerate(rows):
            length = row["input_ids"].shape[1]
            best = loudness[number, :, :length].topk(round(0.4 * length), dim=-1).indices.sort(-1).values
            expected = everything.positions[number].gather(-1, best)
            assert torch.equal(view.positions[number][view.valid[number]].view(2, -1), expected)
    tokens = new_tokens(model, batch(rows), past_key_values=PolicyCache(model, policy))
    for number, row in enumerate(rows):
        assert torch.equal(new_tokens(model, row, past_key_values=PolicyCache(model, policy))[0], tokens[number])


def test_both_spellings_of_a_scorer_agree(model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.batch()
    tokens = [
        new_tokens(
            model,
            inputs,
            past_key_values=PolicyCache(model, decode_with(Pipeline(schedule=FixedRows(9), score=scorer))),
            num_beams=2,
        )
        for scorer in (LoudValues(), LoudValuesByProtocol(), LoudValues(power=3.0))
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])  # the same order of rows


# Mergers and schedulers --------------------------------------------------------------------------------------------


def test_a_merger_of_ones_own(model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.batch()
    dropping = Pipeline(schedule=KeepRatio(0.4), score=LoudValues(), select=kvpolicy.TopK(first=1))
    merging = replace(dropping, merge=IntoTheOldest())
    whole, dropped, merged = (
        PolicyCache(model, policy) for policy in (Policy(), Policy(prefill=dropping), Policy(prefill=merging))
    )
    for cache in (whole, dropped, merged):
        model(**inputs, past_key_values=cache)
    for everything, plain, view in zip(tables(whole), tables(dropped), tables(merged), strict=True):
        assert torch.equal(view.positions, plain.positions)
        assert torch.equal(view.keys, plain.keys)
        assert torch.equal(view.values[:, :, 1:], plain.values[:, :, 1:])
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            stays = (everything.positions[row, :, :length, None] == plain.positions[row, :, None, 1:]).any(-1)
            mean = (everything.values[row, :, :length] * ~stays[..., None]).sum(1) / (~stays).sum(-1, keepdim=True)
            torch.testing.assert_close(view.values[row, :, 0], mean)
            gone = (~stays).sum(-1)
            assert torch.equal(view.columns["count"].data[row, :, 0], gone.float())
    assert merged.report().merged == dropped.report().evicted > 0
    assert merged.report().evicted == 0
    tokens = [
        new_tokens(model, inputs, past_key_values=PolicyCache(model, decode_with(pipeline)), num_beams=2)
        for pipeline in (dropping, merging)
    ]
    assert not torch.equal(*tokens)


def test_a_scheduler_of_ones_own(model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.even()  # 29 tokens in each row
    policy = decode_with(Pipeline(schedule=Sparing(every=5, rows=10), score=kvpolicy.Recency()))
    cache = PolicyCache(model, policy)
    model(**inputs, past_key_values=cache)
    held, mask = [cache.report().layers[2].most], inputs["attention_mask"]
    for number in range(12):
        continue_with(model, cache, mask, words(1, number).expand(2, -1))
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        held.append(cache.report().layers[2].most)
    #               29  30 .. 34              35 .. 39              40, 41
    assert held == [10, 10, 11, 12, 13, 14, 10, 11, 12, 13, 14, 10, 11]
    for view in tables(cache):
        assert view.positions[..., -1].eq(40).all()
    assert new_tokens(model, inputs, past_key_values=PolicyCache(model, policy), num_beams=2).shape == (2, 12)


# Listening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
def test_listen_hears_every_plan_before_it_is_carried_out(family: Family, model_of: ModelOf) -> None:
    model, inputs = model_of(family), family.even()
    length = inputs["input_ids"].shape[1]
    heard: list[tuple[int, int]] = []

    def listen(layer: int, view: CacheView, plan: Plan, step: Step) -> None:
        """Look at once: afterwards the view shows what became of the table."""
        token = len(heard) // 3
        heard.append((layer, view.layer))
        assert view.num_layers == 3
        assert step.phase is (Phase.DECODE if token else Phase.PREFILL)
        assert step.seen.tolist() == [length + token] * 2
        assert view.valid.sum(-1).eq(13 if token else length).all()  # not carried out yet
        assert plan.keep.sum(-1).eq(12).all()
        assert (plan.into is None) == (token > 0)

    cache = PolicyCache(model, kvpolicy.elastic_cache(rows=12), inputs=inputs, listen=listen)
    tokens = new_tokens(model, inputs, 6, past_key_values=cache)
    assert heard == [(layer, layer) for layer in [0, 1, 2] * 6]  # the prompt, and five tokens
    silent = PolicyCache(model, kvpolicy.elastic_cache(rows=12), inputs=inputs)
    assert torch.equal(new_tokens(model, inputs, 6, past_key_values=silent), tokens)


# Segments ----------------------------------------------------------------------------------------------------------


def expected_segments(ids: Tensor, positions: Tensor) -> Tensor:
    """What the rows of a head should carry: 1 for an image token of the prompt, 0 for text and for what came later."""
    prompt = torch.nn.functional.pad((ids == IMAGE_TOKEN).long(), (0, 64))
    return prompt[:, None].expand(-1, positions.shape[1], -1).gather(-1, positions.clamp(min=0))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", [LLAVA, QWEN_VL], ids=repr)
@pytest.mark.parametrize("policy", [kvpolicy.full(), kvpolicy.h2o(keep=0.5), kvpolicy.elastic_cache(rows=20)])
def test_segments_follow_their_rows(policy: Policy, family: Family, beams: int, model_of: ModelOf) -> None:
    model, inputs = model_of(family), family.batch()
    ids = inputs["input_ids"]
    assert torch.equal(segments(inputs, model), torch.where(ids == IMAGE_TOKEN, IMAGE, TEXT))
    assert (IMAGE, TEXT) == (1, 0)
    cache = PolicyCache(model, policy, inputs=inputs)
    new_tokens(model, inputs, past_key_values=cache, num_beams=beams)
    expanded = ids.repeat_interleave(beams, dim=0)
    for view in tables(cache):
        data = view.columns["segment"].data
        assert data.shape[0] == 3 * beams
        assert torch.equal(data[view.valid], expected_segments(expanded, view.positions)[view.valid])
        assert data[view.valid].any()
        assert not data[view.valid].all()


def test_segments_of_ones_own(model_of: ModelOf) -> None:
    """Three kinds of token instead of two, used by a scorer that keeps the third."""

    class Third:
        def score(self, view: CacheView, step: Step) -> Tensor:
            return (view.column("segment", needed_by="Third") == 2).float()

    model, inputs = model_of(LLAMA), LLAMA.batch()
    kinds = (inputs["input_ids"] % 3) * inputs["attention_mask"]
    wanted = [int((kinds[row] == 2).sum()) for row in range(3)]

    class AsManyAsThereAre:
        def budget(self, step: Step) -> Any:
            return torch.tensor(wanted).numpy()

    cache = PolicyCache(
        model, Policy(prefill=Pipeline(schedule=AsManyAsThereAre(), score=Third())), inputs=inputs, segments=kinds
    )
    model(**inputs, past_key_values=cache)
    for view in tables(cache):
        for row in range(3):
            places = view.positions[row][view.valid[row]].view(2, -1)
            assert torch.equal(places[0], (kinds[row] == 2).nonzero()[:, 0])


def test_no_segments_without_inputs(model_of: ModelOf) -> None:
    cache = PolicyCache(model_of(LLAVA), kvpolicy.h2o(keep=0.5))
    new_tokens(model_of(LLAVA), LLAVA.batch(), past_key_values=cache)
    assert "segment" not in tables(cache)[0].columns


# Counts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneOfEach:
    """Of every run of equal tokens one, to which the others are nearest."""

    run: int

    def score(self, view: CacheView, step: Step) -> Tensor:
        return (view.positions % self.run == (self.run - 1) // 2).float()


@pytest.mark.parametrize("run", [2, 3])
def test_a_merged_row_weighs_as_many_tokens_as_it_stands_for(run: int) -> None:
    """Equal tokens at equal rotary positions have equal keys and values, so merging them must change nothing.

    One layer only: in a deeper one the copies of a token have seen different pasts.
    """
    model = new_llama(num_hidden_layers=1)
    enable(model)
    ids = words(8, 4).repeat_interleave(run, dim=1)
    places = torch.arange(8).repeat_interleave(run)[None]
    merging = Pipeline(
        schedule=FixedRows(8),
        score=OneOfEach(run),
        merge=kvpolicy.Fold(kvpolicy.NearestPosition(), kvpolicy.Mean()),
    )
    watch = Pipeline(schedule=KeepRatio(1.0), score=kvpolicy.AttentionMass())

    def logits(policy: Policy) -> tuple[Tensor, CacheView]:
        cache = PolicyCache(model, policy)
        out = [model(input_ids=ids, position_ids=places, past_key_values=cache).logits[:, -1]]
        for number in range(5):
            token = {"input_ids": words(1, 30 + number), "position_ids": torch.tensor([[8 + number]])}
            out.append(model(**token, past_key_values=cache).logits[:, -1])
        (table,) = tables(cache)
        return torch.stack(out, dim=1), table

    whole, everything = logits(Policy(decode=watch))
    biased, view = logits(Policy(prefill=merging, decode=watch, count_bias=True))
    unbiased, _ = logits(Policy(prefill=merging, decode=watch))
    assert view.columns["count"].data[0].tolist() == [[run] * 8 + [1] * 5] * 2
    torch.testing.assert_close(biased, whole, atol=1e-4, rtol=1e-4)
    assert (unbiased - whole)[:, 1:].abs().max() > 0.05
    mass = everything.columns["mass"].data
    together = torch.cat([mass[..., : 8 * run].unflatten(-1, (8, run)).sum(-1), mass[..., 8 * run :]], dim=-1)
    torch.testing.assert_close(view.columns["mass"].data, together, atol=1e-4, rtol=1e-4)


def test_counts_weigh_in_a_padded_batch_too() -> None:
    """With counts of one the bias is zero: the same tokens as without it, through the other way of masking."""
    model, inputs = new_llama(), LLAMA.batch()
    enable(model)
    once = kvpolicy.h2o(keep=0.4)
    biased = replace(once, count_bias=True)
    tokens = [new_tokens(model, inputs, past_key_values=PolicyCache(model, policy)) for policy in (once, biased)]
    assert torch.equal(*tokens)
    elastic = kvpolicy.elastic_cache(keep=0.4)
    rows = LLAMA.rows()
    together = new_tokens(model, inputs, past_key_values=PolicyCache(model, replace(elastic, count_bias=True)))
    for row, expected in zip(rows, together, strict=True):
        cache = PolicyCache(model, replace(elastic, count_bias=True))
        assert torch.equal(new_tokens(model, row, past_key_values=cache)[0], expected)
    assert not torch.equal(new_tokens(model, inputs, past_key_values=PolicyCache(model, elastic)), together)
