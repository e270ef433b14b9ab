"""The attention that a policy scores by is the model's own, whatever the architecture, and costs no n x n matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import (
    FAMILIES,
    LLAMA,
    LLAVA,
    MIXED,
    QWEN2,
    QWEN_VL,
    Family,
    continue_with,
    feed,
    new_llama,
    new_tokens,
    tables,
    text_row,
    words,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import kvpolicy
from kvpolicy import AttentionMass, CacheView, KeepRatio, Pipeline, Policy
from kvpolicy.backends.torch import TorchBackend
from kvpolicy_hf import PolicyCache, enable

ModelOf = Callable[[Family], PreTrainedModel]

WATCH = kvpolicy.h2o(keep=1.0)  # accumulates, never evicts


def eager(family: Family) -> PreTrainedModel:
    """The same weights, with attention that shows its probabilities."""
    model = family.new()
    model.set_attn_implementation("eager")
    return model


def received(attention: Tensor, mask: Tensor, heads: int, first: int = 0) -> Tensor:
    """Column sums over the valid queries from ``first`` on, averaged over the query heads of each key/value head."""
    counted = attention.float()[:, :, first:] * mask[:, None, first:, None]
    return counted.sum(2).unflatten(1, (heads, -1)).mean(2)


def masses(cache: PolicyCache) -> list[CacheView]:
    """The tables, checked to carry the column in float32."""
    views = tables(cache)
    assert all(view.columns["mass"].data.dtype == torch.float32 for view in views)
    return views


def assert_mass(view: CacheView, expected: Tensor, mask: Tensor) -> None:
    """Every valid row of every head holds what its token received."""
    for row in range(len(mask)):
        held = view.valid[row, 0].sum()
        places = view.positions[row, :, :held]
        assert bool(mask[row][places].all())
        ours = view.columns["mass"].data[row, :, :held]
        torch.testing.assert_close(ours, expected[row].gather(-1, places), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_mass_of_a_prompt_is_the_models_own_attention(family: Family, padded: bool, model_of: ModelOf) -> None:
    inputs = family.batch() if padded else family.even()
    attentions = eager(family)(**inputs, output_attentions=True).attentions
    cache = PolicyCache(model_of(family), WATCH)
    model_of(family)(**inputs, past_key_values=cache)
    views = masses(cache)
    assert len(views) == len(attentions) == 3
    for view, attention in zip(views, attentions, strict=True):
        assert_mass(view, received(attention, inputs["attention_mask"], view.shape[1]), inputs["attention_mask"])


def test_mass_of_a_prompt_padded_on_the_right(model_of: ModelOf) -> None:
    """There padding sees the prompt, and must not count."""
    left = LLAMA.batch()
    shifts = (left["attention_mask"] == 0).sum(-1).tolist()
    inputs = {
        name: torch.stack([row.roll(-shift) for row, shift in zip(data, shifts, strict=True)])
        for name, data in left.items()
    }
    assert inputs["attention_mask"][0, -1] == 0
    attentions = eager(LLAMA)(**inputs, output_attentions=True).attentions
    cache = PolicyCache(model_of(LLAMA), WATCH)
    model_of(LLAMA)(**inputs, past_key_values=cache)
    for view, attention in zip(masses(cache), attentions, strict=True):
        assert_mass(view, received(attention, inputs["attention_mask"], 2), inputs["attention_mask"])


@pytest.mark.parametrize("family", [LLAMA, QWEN2, LLAVA], ids=repr)
def test_mass_goes_on_while_decoding(family: Family, model_of: ModelOf) -> None:
    inputs = family.batch()
    tokens = torch.cat([words(5, 40 + number) for number in range(3)])
    cache = PolicyCache(model_of(family), WATCH)
    feed(model_of(family), cache, inputs, tokens)
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = {**inputs, "input_ids": ids, "attention_mask": mask, "position_ids": places}
    for view, attention in zip(masses(cache), eager(family)(**whole, output_attentions=True).attentions, strict=True):
        assert_mass(view, received(attention, mask, view.shape[1]), mask)


def test_mass_of_full_layers_beside_sliding_ones(model_of: ModelOf) -> None:
    inputs = MIXED.batch()
    attentions = eager(MIXED)(**inputs, output_attentions=True).attentions
    cache = PolicyCache(model_of(MIXED), WATCH)
    model_of(MIXED)(**inputs, past_key_values=cache)
    views = masses(cache)
    assert len(views) == 2
    for view, attention in zip(views, attentions[::2], strict=True):
        assert_mass(view, received(attention, inputs["attention_mask"], 2), inputs["attention_mask"])


@pytest.mark.parametrize("family", [LLAMA, QWEN_VL], ids=repr)
def test_a_scorer_sees_the_mass_before_its_plan(family: Family, model_of: ModelOf) -> None:
    inputs, seen = family.batch(), []
    attentions = eager(family)(**inputs, output_attentions=True).attentions

    def listen(layer: int, view: CacheView, plan: kvpolicy.Plan, step: kvpolicy.Step) -> None:
        seen.append((layer, view, plan))

    cache = PolicyCache(model_of(family), kvpolicy.h2o(keep=0.3, recent=0.0), listen=listen)
    model_of(family)(**inputs, past_key_values=cache)
    assert [layer for layer, _, _ in seen] == [0, 1, 2]
    for (_, view, plan), attention in zip(seen, attentions, strict=True):
        expected = received(attention, inputs["attention_mask"], 2)
        torch.testing.assert_close(view.columns["mass"].data, expected, atol=1e-5, rtol=1e-5)
        for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
            best = expected[row].topk(round(0.3 * length), dim=-1).indices
            assert torch.equal(plan.keep[row].nonzero()[:, 1].view(2, -1), best.sort(-1).values)


def test_mass_after_eviction_is_over_the_rows_that_are_left(model_of: ModelOf) -> None:
    """One decode step over a shortened table, against softmax over that table written out."""
    model, inputs = model_of(LLAMA), LLAMA.batch()
    once = Policy(
        prefill=kvpolicy.h2o(keep=0.4).prefill, decode=Pipeline(schedule=KeepRatio(1.0), score=AttentionMass())
    )
    cache = PolicyCache(model, once)
    model(**inputs, past_key_values=cache)
    before = tables(cache)
    queries: list[Tensor] = []
    real = TorchBackend.attention_mass

    def record(self: TorchBackend, view: CacheView, step: kvpolicy.Step, /, **options: Any) -> Tensor:
        queries.append(step.queries * step.scale)
        return real(self, view, step, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "attention_mass", record)
        continue_with(model, cache, inputs["attention_mask"], words(1, 3).expand(3, -1))
    for old, new, query in zip(before, tables(cache), queries, strict=True):
        for row in range(3):
            held = int(new.valid[row, 0].sum())
            assert int(old.valid[row, 0].sum()) == held - 1
            keys = new.keys[row, :, :held].repeat_interleave(2, dim=0)
            shares = torch.softmax(query[row] @ keys.transpose(-1, -2), dim=-1)[:, 0].view(2, 2, -1).mean(1)
            gained = new.columns["mass"].data[row, :, :held].clone()
            gained[:, :-1] -= old.columns["mass"].data[row, :, : held - 1]
            torch.testing.assert_close(gained, shares, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """The most elements that any operation's result has had."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.by = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.numel() > self.most:
                self.most, self.by = tensor.numel(), str(func)
        return out


@pytest.mark.parametrize("policy", [kvpolicy.full(), kvpolicy.h2o(keep=0.2), kvpolicy.elastic_cache(keep=0.2)])
def test_no_pass_makes_a_matrix_of_queries_by_rows(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = new_llama(), text_row(600, 9)
    enable(model)
    cache = PolicyCache(model, policy)
    monkeypatch.setattr(cache.session, "ops", TorchBackend(chunk_elements=20_000))
    with Largest() as largest:
        model(**inputs, past_key_values=cache, logits_to_keep=1)
    assert largest.most < 600 * 600 // 3, largest.by


def test_the_probe_sees_such_a_matrix() -> None:
    with Largest() as largest:
        eager(LLAMA)(**text_row(600, 9), logits_to_keep=1)
    assert largest.most >= 600 * 600


@pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
def test_nobody_asks_for_attention_weights(family: Family, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvpolicy_hf import attention

    asked: list[dict[str, Any]] = []
    real = attention.plain_attention

    def record(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        out = real(*args, **kwargs)
        asked.append(kwargs)
        assert out[1] is None
        return out

    monkeypatch.setattr(attention, "plain_attention", record)
    model, inputs = model_of(family), family.batch()
    new_tokens(model, inputs, 3, past_key_values=PolicyCache(model, kvpolicy.h2o(keep=0.3), inputs=inputs))
    assert len(asked) == 3 * 3
    assert not any(kwargs.get("output_attentions") for kwargs in asked)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mass_is_summed_in_float32(dtype: torch.dtype) -> None:
    """A thousand small shares vanish in half precision."""
    model, inputs = new_llama(dtype), text_row(700, 4)
    enable(model)
    cache = PolicyCache(model, WATCH)
    model(**inputs, past_key_values=cache)
    for view in masses(cache):
        total = view.columns["mass"].data.sum(-1)
        torch.testing.assert_close(total, torch.full_like(total, 700.0), atol=0.01, rtol=0)
