"""A policy that keeps everything, and an enabled model without a policy, give the plain model's tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import (
    FAMILIES,
    LLAMA,
    LLAVA,
    MIXED,
    QWEN_VL,
    Family,
    Inputs,
    feed,
    new_llama,
    new_tokens,
    tables,
    text_row,
    text_rows,
    words,
)
from transformers import DynamicCache, PreTrainedModel, StaticCache

import kvpolicy
from kvpolicy_hf import PolicyCache, disable, enable, is_enabled, softmax
from kvpolicy_hf.softmax import Softmax

WAYS: dict[str, tuple[Callable[[Family], Inputs], dict[str, Any]]] = {
    "greedy": (Family.even, {}),
    "greedy, padded": (Family.batch, {}),
    "sampling": (Family.batch, {"do_sample": True, "temperature": 1.3, "top_k": 30}),
    "beams": (Family.batch, {"num_beams": 3}),
    "return sequences": (Family.batch, {"do_sample": True, "num_return_sequences": 2}),
    "beams and return sequences": (Family.even, {"num_beams": 3, "num_return_sequences": 3}),
}


def attention_names(model: PreTrainedModel) -> list[str]:
    """What every part of a model uses, in order."""
    return [part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", [*FAMILIES, MIXED], ids=repr)
def test_full_gives_the_plain_tokens(family: Family, way: str) -> None:
    prepare, options = WAYS[way]
    inputs, model = prepare(family), family.new()
    plain = new_tokens(model, inputs, past_key_values=DynamicCache(config=model.config.get_text_config()), **options)
    enable(model)
    cache = PolicyCache(model, kvpolicy.full(), inputs=inputs)
    assert torch.equal(new_tokens(model, inputs, past_key_values=cache, **options), plain)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + plain.shape[1] - 1
    report = cache.report()
    assert report.evicted == report.merged == 0
    assert {layer.most for layer in report.layers} == {max(report.tokens)}


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_full_gives_the_tokens_of_the_eager_model(family: Family) -> None:
    model, inputs = family.new(), family.batch()
    model.set_attn_implementation("eager")
    plain = new_tokens(model, inputs)
    enable(model)
    assert torch.equal(new_tokens(model, inputs, past_key_values=PolicyCache(model, kvpolicy.full())), plain)
    disable(model)
    assert set(attention_names(model)) == {"eager"}


@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
def test_full_in_bfloat16(padded: bool) -> None:
    model = new_llama(torch.bfloat16)
    inputs = LLAMA.batch() if padded else LLAMA.even()
    plain = new_tokens(model, inputs)
    enable(model)
    cache = PolicyCache(model, kvpolicy.full())
    assert torch.equal(new_tokens(model, inputs, past_key_values=cache), plain)
    assert cache.session.report().kv_bytes < 2 * cache.report().full_kv_bytes


@pytest.mark.parametrize("family", [LLAMA, QWEN_VL], ids=repr)
def test_full_gives_the_plain_logits(family: Family) -> None:
    """Equal tokens could hide a small drift."""
    model, inputs = family.new(), family.batch()
    plain = model(**inputs, past_key_values=DynamicCache()).logits
    enable(model)
    logits = model(**inputs, past_key_values=PolicyCache(model, kvpolicy.full())).logits
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[seen], plain[seen], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, MIXED], ids=repr)
def test_an_enabled_model_without_a_policy_is_the_model_it_was(family: Family) -> None:
    model, inputs = family.new(), family.batch()

    def runs() -> list[torch.Tensor]:
        length = inputs["input_ids"].shape[1] + 12
        text = model.config.get_text_config()
        caches: list[dict[str, Any]] = [
            {},
            {"past_key_values": DynamicCache(config=text)},
            {"past_key_values": StaticCache(config=text, max_cache_len=length)},
            {"use_cache": False},
            {"num_beams": 3},
        ]
        return [new_tokens(model, inputs, **options) for options in caches]

    before = runs()
    enable(model)
    assert all(map(torch.equal, runs(), before))
    disable(model)
    assert all(map(torch.equal, runs(), before))


@pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
@pytest.mark.parametrize("caching", [False, True], ids=["no cache", "cache"])
def test_training_an_enabled_model(family: Family, caching: bool) -> None:
    def gradients(model: PreTrainedModel) -> list[torch.Tensor]:
        inputs = family.batch()
        with torch.enable_grad():
            out = model.train()(**inputs, labels=inputs["input_ids"], use_cache=caching)
            out.loss.backward()
        return [out.logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    plain, enabled = family.new(), family.new()
    enable(enabled)
    pairs = list(zip(gradients(enabled), gradients(plain), strict=True))
    assert len(pairs) > 20
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("family", [*FAMILIES, MIXED], ids=repr)
def test_enable_switches_the_text_decoder_only_and_disable_restores_it(family: Family) -> None:
    model, other = family.new(), family.new()
    assert not is_enabled(model)
    before = attention_names(model)
    enable(model)
    enabled = attention_names(model)
    assert is_enabled(model)
    assert not is_enabled(other)
    enable(model)  # a second time
    assert attention_names(model) == enabled
    text = model.config.get_text_config()
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            assert part.config._attn_implementation == ("kvpolicy" if part.config is text else "sdpa")
    if family.vision:
        assert model.config.vision_config._attn_implementation == "sdpa"
    disable(model)
    disable(model)
    assert attention_names(model) == before
    assert not is_enabled(model)


def test_a_vision_tower_set_to_eager_stays_so() -> None:
    model = LLAVA.new()
    model.set_attn_implementation({"vision_config": "eager"})
    enable(model)
    assert model.config.vision_config._attn_implementation == "eager"
    disable(model)
    assert model.config.vision_config._attn_implementation == "eager"
    assert model.config.text_config._attn_implementation == "sdpa"


def test_disable_after_enabling_twice_gives_the_first_attention_back() -> None:
    model = new_llama()
    model.set_attn_implementation("eager")
    enable(model)
    enable(model)
    disable(model)
    assert attention_names(model)[0] == "eager"


def test_a_second_model_with_other_attention_runs_beside_an_enabled_one() -> None:
    inputs, other = text_row(20, 1), new_llama()
    plain = new_tokens(other, inputs)
    model = new_llama()
    enable(model)
    cache = PolicyCache(model, kvpolicy.h2o(keep=0.3))
    evicted = new_tokens(model, inputs, past_key_values=cache)
    assert torch.equal(new_tokens(other, inputs), plain)
    assert not torch.equal(evicted, plain)


def test_importing_changes_nothing_in_transformers() -> None:
    code = """
import transformers.cache_utils as caches, transformers.masking_utils as masking
import transformers.modeling_utils as modeling

def state():
    return (
        dict(modeling.ALL_ATTENTION_FUNCTIONS._global_mapping), dict(modeling.ALL_ATTENTION_FUNCTIONS._local_mapping),
        dict(masking.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping),
        dict(masking.ALL_MASK_ATTENTION_FUNCTIONS._local_mapping),
        dict(vars(caches.Cache)), dict(vars(caches.DynamicCache)), dict(vars(modeling.PreTrainedModel)),
        dict(caches.DYNAMIC_LAYER_TYPE_MAPPING), dict(caches.STATIC_LAYER_TYPE_MAPPING),
    )

before = state()
import kvpolicy_hf
assert state() == before
from models import new_llama
kvpolicy_hf.enable(new_llama())
changed = [set(now) ^ set(then) for now, then in zip(state(), before)]
assert changed == [{"kvpolicy"}, set(), {"kvpolicy"}] + [set()] * 6, changed
for now, then in zip(state(), before):
    assert all(now[name] is then[name] for name in then)
"""
    here = str(__import__("pathlib").Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[here, *sys.path]!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("count_bias", [False, True])
def test_prompts_of_one_token(count_bias: bool) -> None:
    model = new_llama()
    inputs = text_row(1, 5)
    plain = new_tokens(model, inputs)
    enable(model)
    cache = PolicyCache(model, kvpolicy.Policy(count_bias=count_bias), inputs=inputs)
    assert torch.equal(new_tokens(model, inputs, past_key_values=cache), plain)


@pytest.mark.parametrize("policy", [kvpolicy.full(), kvpolicy.h2o(rows=9), kvpolicy.elastic_cache(keep=0.4)])
def test_passes_that_record_gradients(policy: kvpolicy.Policy) -> None:
    """Forgetting `torch.no_grad` changes no number, and the policy's own work is no part of the graph."""
    model, inputs = new_llama(), LLAMA.batch()
    enable(model)
    tokens = torch.cat([words(4, 40 + number) for number in range(3)])
    without = feed(model, PolicyCache(model, policy), inputs, tokens)
    with torch.enable_grad():
        cache = PolicyCache(model, policy)
        recorded = feed(model, cache, inputs, tokens)
        assert recorded.requires_grad
        assert torch.equal(recorded, without)
        for view in tables(cache):
            assert not any(column.data.requires_grad for column in view.columns.values())
        out = model(**inputs, past_key_values=PolicyCache(model, policy), labels=inputs["input_ids"])
        out.loss.backward()
    plain = new_llama()
    with torch.enable_grad():
        plain(**inputs, labels=inputs["input_ids"]).loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)


def test_forward_without_an_attention_mask() -> None:
    model, ids = new_llama(), torch.cat([row["input_ids"][:, :20] for row in text_rows()])
    plain = model(input_ids=ids, past_key_values=DynamicCache()).logits
    enable(model)
    cache = PolicyCache(model, kvpolicy.full())
    torch.testing.assert_close(model(input_ids=ids, past_key_values=cache).logits, plain)
    step = ids[:, :1]
    again = DynamicCache()
    model(input_ids=ids, past_key_values=again)
    torch.testing.assert_close(
        model(input_ids=step, past_key_values=cache).logits, model(input_ids=step, past_key_values=again).logits
    )


@pytest.mark.parametrize("told", [True, False])
def test_a_softmax_of_our_own_is_the_same_in_pieces(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, heads, 7, 8, generator=draw) for heads in (4, 2, 2))
    made = Softmax(scale=0.5, softcap=3.0, sinks=torch.randn(4, generator=draw))
    mask = torch.rand(2, 1, 7, 7, generator=draw) < 0.7 if told else None
    whole = made.attend(queries, keys, values, mask, is_causal=not told, dropout=0.0)
    assert whole.shape == (2, 7, 4, 8)
    monkeypatch.setattr(softmax, "_ELEMENTS", 3 * 2 * 4 * 7)  # three queries at a time
    pieces = made.attend(queries, keys, values, mask, is_causal=not told, dropout=0.0)
    torch.testing.assert_close(pieces, whole)


def test_a_backend_attends_to_single_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    model, inputs, asked = new_llama(), LLAMA.even(), list[int]()
    enable(model)
    caches = [PolicyCache(model, kvpolicy.h2o(rows=9), inputs=inputs, backend=name) for name in ("triton", "torch")]
    backend = type(caches[0].session.ops)
    attend = backend.attend  # type: ignore[attr-defined]

    def counting(self: Any, view: Any, queries: torch.Tensor, **told: Any) -> Any:
        asked.append(queries.shape[2])
        return attend(self, view, queries, **told)

    monkeypatch.setattr(backend, "attend", counting)
    tokens = inputs["input_ids"]
    for given in (tokens, tokens[:, :1], tokens[:, 1:4], tokens[:, 4:5]):
        ours, due = (model(input_ids=given, past_key_values=cache).logits for cache in caches)
        torch.testing.assert_close(ours, due, rtol=1e-4, atol=1e-4)
    assert asked == [1] * 2 * len(caches[0].layers)
