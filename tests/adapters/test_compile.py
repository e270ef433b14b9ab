"""Compiled decoding: one graph without a break, run for every token and request, and the very same tokens."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models import LLAMA, LLAVA, MIXED, Family, assert_same_tables, new_llama, words
from torch import Tensor
from torch._dynamo import register_backend
from transformers import CompileConfig, PreTrainedModel

import kvpolicy
from kvpolicy import CacheError, Policy, PolicyError, UnsupportedModelError
from kvpolicy_hf import PolicyCache, compile_decode, enable

NEW = 10
POLICIES: dict[str, Policy] = {
    "elastic_cache": kvpolicy.elastic_cache(keep=0.4),
    "h2o": kvpolicy.h2o(keep=0.4),
    "tova": kvpolicy.tova(rows=9),
    "ada_kv": kvpolicy.ada_kv(rows=9),
}
traced: list[int] = []  # nodes of every graph that was compiled


@register_backend(name="kvpolicy_test")
def _run_as_it_is(graph: Any, example_inputs: Any) -> Callable[..., Any]:
    """What dynamo traced, run by torch itself: there is no GPU here, and nothing to be gained from a C++ compiler."""
    traced.append(len(graph.graph.nodes))
    run: Callable[..., Any] = graph.forward
    return run


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch._dynamo.reset()
    traced.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        yield
    torch._dynamo.reset()


def options(**changes: Any) -> dict[str, Any]:
    """Arguments of `generate` that compile on a CPU, and let no graph break."""
    config = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="kvpolicy_test")
    config._compile_all_devices = True
    return {"max_new_tokens": NEW, "do_sample": False, "compile_config": config, **changes}


def compiled(model: PreTrainedModel, policy: Policy, inputs: Any, **settings: Any) -> PolicyCache:
    cache = PolicyCache(model, policy, inputs=inputs, **settings)
    compile_decode(model, cache, max_length=inputs["input_ids"].shape[1] + NEW)
    return cache


def small() -> PreTrainedModel:
    model = new_llama(num_hidden_layers=2)
    enable(model)
    return model


def plain(model: PreTrainedModel, policy: Policy, inputs: Any) -> tuple[Tensor, PolicyCache]:
    cache = PolicyCache(model, policy, inputs=inputs)
    return model.generate(**inputs, past_key_values=cache, max_new_tokens=NEW, do_sample=False), cache


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_tokens_from_one_graph(name: str) -> None:
    model, policy = small(), POLICIES[name]
    for inputs in (LLAMA.batch(), {key: data.flip(0) for key, data in LLAMA.batch().items()}):
        cache = compiled(model, policy, inputs)
        due, plainly = plain(model, policy, inputs)
        assert torch.equal(model.generate(**inputs, past_key_values=cache, **options()), due)
        assert [layer.rows for layer in cache.report().layers] == [layer.rows for layer in plainly.report().layers]
    assert len(traced) == 1  # a further request, of other padding, runs the same code


def test_pictures(model_of: Callable[[Family], PreTrainedModel]) -> None:
    model, policy, inputs = model_of(LLAVA), POLICIES["elastic_cache"], LLAVA.batch()
    cache = compiled(model, policy, inputs)
    assert torch.equal(model.generate(**inputs, past_key_values=cache, **options()), plain(model, policy, inputs)[0])
    assert len(traced) == 1


def test_the_triton_kernels_are_part_of_the_graph() -> None:
    pytest.importorskip("triton")
    model, policy, inputs = small(), POLICIES["h2o"], LLAMA.batch()
    cache = compiled(model, policy, inputs, backend="triton")
    assert torch.equal(model.generate(**inputs, past_key_values=cache, **options()), plain(model, policy, inputs)[0])
    assert len(traced) == 1
    assert "backend triton" in str(cache.report())


def test_a_loop_of_ones_own() -> None:
    model, policy, inputs = small(), POLICIES["elastic_cache"], LLAMA.even()
    cache = PolicyCache(model, policy, inputs=inputs)
    model.generation_config.compile_config = options()["compile_config"]
    step = compile_decode(model, cache, max_length=inputs["input_ids"].shape[1] + NEW)
    token = model(**inputs, past_key_values=cache).logits[:, -1:].argmax(-1)
    tokens = [token]
    for place in range(inputs["input_ids"].shape[1], inputs["input_ids"].shape[1] + NEW - 1):
        at = torch.full_like(token, place)
        token = step(input_ids=token, position_ids=at, past_key_values=cache).logits[:, -1:].argmax(-1)
        tokens.append(token)
    assert len(traced) == 1
    assert torch.equal(torch.cat(tokens, 1), plain(model, policy, inputs)[0][:, -NEW:])


def test_turns_beams_copies_and_resets() -> None:
    """Not compiled, in place all the same: what `generate` does on a CPU without a configuration."""
    model, policy = small(), POLICIES["h2o"]
    inputs = LLAMA.even()
    length = inputs["input_ids"].shape[1]
    asked: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    caches = [PolicyCache(model, policy, inputs=inputs) for _ in range(2)]
    compile_decode(model, caches[0], max_length=length + 30)
    first = [model.generate(**inputs, past_key_values=cache, **asked) for cache in caches]
    assert torch.equal(*first)
    copies = [copy.deepcopy(cache) for cache in caches]
    further = torch.cat([first[0], inputs["input_ids"][:, :6]], dim=1)
    mask = torch.ones_like(further)
    for both in (caches, copies):
        second = [model.generate(further, attention_mask=mask, past_key_values=cache, **asked) for cache in both]
        assert torch.equal(*second)
    assert caches[0].report().layers[0].rows == caches[1].report().layers[0].rows
    for cache in caches:
        cache.reset()
    assert torch.equal(*(model.generate(**inputs, past_key_values=cache, **asked) for cache in caches))
    beams = [PolicyCache(model, policy, inputs=inputs) for _ in range(2)]
    compile_decode(model, beams[0], max_length=length + 5)
    assert torch.equal(*(model.generate(**inputs, past_key_values=cache, num_beams=3, **asked) for cache in beams))


def assert_same_logits(model: PreTrainedModel, tokens: Tensor, one: PolicyCache, other: PolicyCache) -> None:
    """To rounding: rows may stand in other slots, and sums have another order."""
    logits = [model(input_ids=tokens, past_key_values=cache).logits for cache in (one, other)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_tokens_are_taken_back_where_that_is_exact() -> None:
    model, inputs = small(), LLAMA.even()
    caches = [PolicyCache(model, kvpolicy.snapkv(rows=9), inputs=inputs) for _ in range(2)]
    compile_decode(model, caches[0], max_length=inputs["input_ids"].shape[1] + NEW)
    for cache in caches:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False)
        cache.crop(-2)
    assert_same_tables(*caches)
    assert_same_logits(model, inputs["input_ids"][:, :1], *caches)


def test_batch_rows_that_are_chosen() -> None:
    """As many as there were stay in place; of another number no pass was made for."""
    model, inputs = small(), LLAMA.even()
    caches = [PolicyCache(model, POLICIES["h2o"], inputs=inputs) for _ in range(2)]
    compile_decode(model, caches[0], max_length=inputs["input_ids"].shape[1] + NEW)
    rows = torch.arange(len(inputs["input_ids"]))
    for cache in caches:
        model(**inputs, past_key_values=cache)
    for chosen, stays in ((rows.flip(0), True), (rows[1:], False)):
        for cache in caches:
            cache.batch_select_indices(chosen)
        assert [layer.steady is not None for layer in caches[0].layers] == [stays] * len(caches[0].layers)
        assert_same_logits(model, words(1, 7).expand(len(chosen), 1), *caches)


def test_no_token_without_room() -> None:
    model, inputs = small(), LLAMA.even()
    length = inputs["input_ids"].shape[1]
    cache = PolicyCache(model, POLICIES["h2o"], inputs=inputs)
    compile_decode(model, cache, max_length=length + 3)
    with pytest.raises(CacheError, match=rf"max_length={length + 3}\): this is token {length + 4}\. Hint: a larger"):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)


def test_what_is_not_compiled(model_of: Callable[[Family], PreTrainedModel]) -> None:
    model = small()
    cache = PolicyCache(model, POLICIES["h2o"])
    with pytest.raises(PolicyError, match="cache=NoneType"):
        compile_decode(model, None, max_length=9)  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="made for another model"):
        compile_decode(small(), cache, max_length=9)
    with pytest.raises(PolicyError, match="max_length=0"):
        compile_decode(model, cache, max_length=0)
    with pytest.raises(PolicyError, match=r"merge=.* folds rows while decoding.*Hint: decode without compile_decode"):
        compile_decode(model, PolicyCache(model, kvpolicy.cam(keep=0.5)), max_length=9)
    mixed = model_of(MIXED)
    with pytest.raises(UnsupportedModelError, match=r"layers that are not under the policy .*Sliding"):
        compile_decode(mixed, PolicyCache(mixed, POLICIES["h2o"]), max_length=9)
    assert not cache.is_compileable
    model(**LLAMA.batch(), past_key_values=cache)
    with pytest.raises(CacheError, match="comes before the prompt"):
        compile_decode(model, cache, max_length=99)
