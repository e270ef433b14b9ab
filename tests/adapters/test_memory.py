"""What a cache says it takes is what it takes, and what a policy drops is really gone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models import (
    FAMILIES,
    LLAMA,
    LLAVA,
    TEXT,
    Family,
    Inputs,
    batch,
    continue_with,
    new_llama,
    new_tokens,
    tables,
    text_row,
    words,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, Phi3Config, Phi3ForCausalLM, PreTrainedModel

import kvpolicy
from kvpolicy import Policy
from kvpolicy_hf import PolicyCache, enable

ModelOf = Callable[[Family], PreTrainedModel]

POLICIES: dict[str, Policy] = {
    "full": kvpolicy.full(),
    "elastic_cache": kvpolicy.elastic_cache(keep=0.3),
    "h2o": kvpolicy.h2o(keep=0.3),
    "h2o, rows": kvpolicy.h2o(rows=12),
    "h2o, roomy": kvpolicy.h2o(rows=200),
    "streaming_llm": kvpolicy.streaming_llm(rows=12),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def reachable(root: object) -> Iterator[Tensor]:
    """Every tensor that an object holds, however deep, models and functions left out."""
    seen: set[int] = set()
    queue: list[Any] = [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, (type, torch.nn.Module, str, bytes, int, float)) or callable(item):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            if item.ndim > 1:  # a counter of each batch row, waiting on the device, is no storage
                yield item
            continue
        if isinstance(item, dict):
            queue += item.values()
        elif isinstance(item, (list, tuple, set)):
            queue += item
        elif hasattr(item, "items"):
            queue += [value for _, value in item.items()]
        queue += vars(item).values() if hasattr(item, "__dict__") else []
        if dataclasses.is_dataclass(item):
            queue += [getattr(item, each.name, None) for each in dataclasses.fields(item)]


def storage(root: object) -> int:
    """Bytes of all storages behind those tensors, each counted once and whole."""
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in reachable(root)}
    return sum(sizes.values())


def run(model: PreTrainedModel, policy: Policy, inputs: Inputs, steps: int) -> PolicyCache:
    """A prompt and so many tokens."""
    cache = PolicyCache(model, policy, inputs=inputs)
    model(**inputs, past_key_values=cache)
    continue_with(model, cache, inputs["attention_mask"], words(steps, 5).expand(len(inputs["input_ids"]), -1))
    return cache


@each_policy
@pytest.mark.parametrize("family", [LLAMA, LLAVA], ids=repr)
@pytest.mark.parametrize("steps", [1, 15])
def test_reported_bytes_are_the_storage(family: Family, policy: Policy, steps: int, model_of: ModelOf) -> None:
    cache = run(model_of(family), policy, family.batch(), steps)
    report = cache.report()
    assert report.kv_bytes + report.column_bytes == storage(cache.session)
    for layer, state in zip(report.layers, cache.session._layers, strict=True):
        assert layer.kv_bytes + layer.column_bytes == storage(state.store)
        assert layer.kv_bytes == 3 * 2 * layer.capacity * (12 + 12) * 4  # batch, heads, rows, key and value dims


def test_no_projection_of_the_model_is_kept_alive() -> None:
    """Phi-3 cuts queries, keys and values out of one tensor; holding a slice of it would hold all of it."""
    torch.manual_seed(7)
    model = Phi3ForCausalLM(Phi3Config(**TEXT)).eval()
    enable(model)
    inputs = text_row(50, 1)
    for policy in (kvpolicy.full(), kvpolicy.h2o(rows=60), kvpolicy.h2o(rows=20)):
        cache = PolicyCache(model, policy)
        model(**inputs, past_key_values=cache)
        report = cache.report()
        assert report.kv_bytes + report.column_bytes == storage(cache.session)


@each_policy
def test_the_bytes_of_a_full_cache_are_those_of_the_plain_one(policy: Policy, model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.batch()
    plain = DynamicCache()
    model(**inputs, past_key_values=plain)
    continue_with(model, plain, inputs["attention_mask"], words(5, 5).expand(3, -1))
    expected = sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers)
    assert run(model, policy, inputs, 5).report().full_kv_bytes == expected


@pytest.mark.parametrize("recipe", [kvpolicy.elastic_cache, kvpolicy.h2o, kvpolicy.streaming_llm])
@pytest.mark.parametrize("length", [30, 101, 250])
def test_storage_after_the_prompt_is_the_share_kept(
    recipe: Callable[..., Policy], length: int, model_of: ModelOf
) -> None:
    model, inputs = model_of(LLAMA), text_row(length, 3)
    cache = PolicyCache(model, recipe(keep=0.2), inputs=inputs)
    model(**inputs, past_key_values=cache)
    row = 2 * (12 + 12) * 4 * 3  # heads, dims, bytes, layers
    assert cache.report().kv_bytes <= (0.2 * length + 1) * row
    assert all(layer.capacity <= 0.2 * length + 1 for layer in cache.report().layers)


@pytest.mark.parametrize("recipe", [kvpolicy.elastic_cache, kvpolicy.h2o, kvpolicy.streaming_llm])
@pytest.mark.parametrize(("slots", "beams"), [(8, 1), (12, 2), (38, 1), (40, 1), (41, 1), (60, 1)])
def test_memory_is_never_exceeded(recipe: Callable[..., Policy], slots: int, beams: int, model_of: ModelOf) -> None:
    """From a prompt much longer than fits (40 tokens against 8 slots) to one that just fits, and for 40 tokens more."""
    model, inputs = model_of(LLAMA), batch([text_row(40, 3)] * beams)
    row = beams * 2 * (12 + 12) * 4 * 3
    memory = slots * row + row // 2
    cache = PolicyCache(model, recipe(memory=memory), inputs=inputs)
    model(**inputs, past_key_values=cache)
    mask, sizes = inputs["attention_mask"], [cache.report().kv_bytes]
    for number in range(40):
        token = words(1, number).expand(beams, -1)
        continue_with(model, cache, mask, token)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        sizes.append(cache.report().kv_bytes)
    assert max(sizes) <= memory
    assert cache.report().layers[0].most == min(slots - 1, 80)


class Operations(TorchDispatchMode):
    """What was called, and how large its result was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.calls.append((str(func.overloadpacket), out.numel()))
        return out


@pytest.mark.parametrize("recipe", [kvpolicy.h2o, kvpolicy.streaming_llm, kvpolicy.elastic_cache])
def test_a_bounded_policy_decodes_in_place(recipe: Callable[..., Policy], model_of: ModelOf) -> None:
    """No concatenation of the cache and no new storage for it: a new row takes an evicted row's slot."""
    model, inputs = model_of(LLAMA), text_row(200, 8)
    cache = PolicyCache(model, recipe(rows=64), inputs=inputs)
    model(**inputs, past_key_values=cache)
    continue_with(model, cache, inputs["attention_mask"], words(2, 1))
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)

    def places() -> list[int]:
        stored = (layer.store.view() for layer in cache.session._layers)
        return [tensor.data_ptr() for view in stored for tensor in (view.keys, view.values, view.positions)]

    before, size = places(), cache.session._layers[0].store.view().keys.numel()
    assert size == 2 * 65 * 12
    with Operations() as operations:
        continue_with(model, cache, mask, words(20, 2))
    assert places() == before
    assert {layer.capacity for layer in cache.report().layers} == {65}
    large = Counter(name for name, numel in operations.calls if numel >= size)
    copies = {"aten.cat", "aten.copy_", "aten.gather", "aten.index_select", "aten.new_zeros", "aten.index"}
    assert not copies & large.keys(), large
    assert large["aten.clone"] == 0, "the keys are copied while scoring"


@each_policy
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_rows_held_evicted_and_merged_add_up(family: Family, policy: Policy, model_of: ModelOf) -> None:
    model, inputs = model_of(family), family.batch()
    cache = PolicyCache(model, policy, inputs=inputs)
    new_tokens(model, inputs, 16, past_key_values=cache)
    report, tokens = cache.report(), inputs["attention_mask"].sum(-1) + 15
    assert report.tokens == tuple(tokens.tolist())
    for layer, state in zip(report.layers, cache.session._layers, strict=True):
        valid = state.store.view().valid
        assert round(layer.rows * 3 * 2) == int(valid.sum())
        assert layer.most == int(valid.sum(-1).max())
        assert layer.rows * 3 * 2 + layer.evicted + layer.merged == 2 * int(tokens.sum())
    assert report.evicted == sum(layer.evicted for layer in report.layers)
    assert report.merged == sum(layer.merged for layer in report.layers)
    assert (report.merged > 0) == (policy == POLICIES["elastic_cache"])
    assert (report.evicted > 0) == (policy not in (POLICIES["full"], POLICIES["h2o, roomy"]))


def test_merged_rows_count_for_the_tokens_in_them(model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.batch()
    cache = PolicyCache(model, POLICIES["elastic_cache"], inputs=inputs)
    model(**inputs, past_key_values=cache)
    for view, layer in zip(tables(cache), cache.report().layers, strict=True):
        assert layer.evicted == 0 < layer.merged
        tokens = inputs["attention_mask"].sum(-1, keepdim=True).expand(-1, 2)
        torch.testing.assert_close(view.columns["count"].data.sum(-1), tokens.float())


@each_policy
def test_the_printed_report_has_a_line_for_each_layer(policy: Policy, model_of: ModelOf) -> None:
    cache = run(model_of(LLAMA), policy, LLAMA.batch(), 4)
    report = cache.report()
    lines = str(report).splitlines()
    assert eval("".join(lines[: lines.index("")]), vars(kvpolicy)) == policy
    fields = [line.split() for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert [int(line[0]) for line in fields] == [0, 1, 2]
    for line, layer in zip(fields, report.layers, strict=True):
        assert float(line[1]) == pytest.approx(layer.rows, abs=0.05)
        assert [int(number) for number in line[2:6]] == [layer.most, layer.capacity, layer.evicted, layer.merged]


def test_protected_rows_above_the_budget_are_reported() -> None:
    model, inputs = new_llama(), text_row(30, 1)
    enable(model)
    greedy = kvpolicy.Pipeline(
        schedule=kvpolicy.FixedRows(6), score=kvpolicy.Recency(), select=kvpolicy.TopK(first=5, last=5)
    )
    cache = PolicyCache(model, Policy(prefill=greedy))
    model(**inputs, past_key_values=cache)
    report = cache.report()
    assert [layer.exceeded for layer in report.layers] == [4 * 2] * 3
    assert f"{report.exceeded} protected rows" in str(report)


def test_an_unused_cache_reports_nothing(model_of: ModelOf) -> None:
    report = PolicyCache(model_of(LLAMA), kvpolicy.h2o(keep=0.2)).report()
    assert report.kv_bytes == report.full_kv_bytes == report.column_bytes == report.evicted == 0
    assert len(str(report).splitlines()) > 3


def test_a_pass_outside_no_grad_keeps_no_graph(model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), text_row(20, 3)
    cache = PolicyCache(model, kvpolicy.h2o(keep=0.5), inputs=inputs)
    with torch.enable_grad():
        assert model(**inputs, past_key_values=cache).logits.requires_grad
    view = cache.session._layers[0].store.view()
    assert not any(tensor.requires_grad for tensor in (view.keys, view.values, view.columns["mass"].data))


@pytest.mark.parametrize("policy", [kvpolicy.full(), kvpolicy.h2o(rows=10), kvpolicy.elastic_cache(keep=0.4)], ids=repr)
def test_inference_mode_may_come_and_go(policy: Policy, model_of: ModelOf) -> None:
    """A tensor made in inference mode can be written only there: the storage must not be one."""
    model, inputs = model_of(LLAMA), text_row(30, 3)
    tokens = words(6, 5)
    whole, mixed = PolicyCache(model, policy), PolicyCache(model, policy)
    for cache, modes in ((whole, [torch.no_grad] * 3), (mixed, [torch.inference_mode, torch.no_grad] * 2)):
        with modes[0]():
            model(**inputs, past_key_values=cache)
        for number in range(tokens.shape[-1]):
            with modes[(number + 1) // 2 % len(modes)]():
                last = model(tokens[:, number : number + 1], past_key_values=cache).logits
    kept, same = (cache.session._layers[-1].store.view() for cache in (whole, mixed))
    assert torch.equal(kept.positions, same.positions)
    assert torch.equal(kept.keys, same.keys)
    assert last.isfinite().all()


@pytest.mark.parametrize("recipe", [kvpolicy.elastic_cache, kvpolicy.h2o])
def test_the_report_adds_up_for_beams(recipe: Callable[..., Policy], model_of: ModelOf) -> None:
    """What was evicted and merged goes with its batch row, so held, evicted and merged rows are all that came."""
    model, inputs = model_of(LLAMA), LLAMA.batch()
    cache = PolicyCache(model, recipe(keep=0.4))
    model.generate(**inputs, past_key_values=cache, max_new_tokens=6, num_beams=3, do_sample=False)
    cache.batch_select_indices(torch.tensor([0, 3]))
    cache.batch_repeat_interleave(2)
    report = cache.report()
    assert len(report.tokens) == 4
    for layer, state in zip(report.layers, cache.session._layers, strict=True):
        assert state.held.sum() + layer.evicted + layer.merged == 2 * sum(report.tokens)  # two key/value heads
