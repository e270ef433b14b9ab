"""Layers on several devices: no tensor of one meets a tensor of another, and the tokens are those of one device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import stock
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from pretended import PretendedDevices, place, place_of
from workloads import POLICIES, PROMPTS, new_model

import kvpolicy
from kvpolicy import AttentionMass, ExpectedAttention, FixedRows, Pipeline, Policy, Shared
from kvpolicy_hf import PolicyCache, enable

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
MORE: dict[str, Policy] = {
    "one score for all layers": Policy(prefill=Pipeline(schedule=FixedRows(9), score=Shared(AttentionMass()))),
    "controller": Policy(prefill=Pipeline(schedule=FixedRows(9), score=stock.controller(8))),
    "expected": Policy(prefill=Pipeline(schedule=FixedRows(9), score=ExpectedAttention(window=8, future=8))),
    "adore": kvpolicy.adore(rows=9, recall=2),
    "prominence": kvpolicy.cam(keep=0.4),
    "clusters": kvpolicy.kv_merger(keep=0.4),
}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": 2}, "sequences": {"num_return_sequences": 2}}


@pytest.fixture
def devices() -> Iterator[None]:
    with PretendedDevices():
        yield


def spread() -> Any:
    """The model as `device_map` lays it out, its first layer on one device and all that follows on another."""
    model = new_model()
    base, layers = model.model, model.model.layers
    for part, device in [
        (base.embed_tokens, FIRST),
        (base.rotary_emb, FIRST),
        (layers[0], FIRST),
        *((layer, SECOND) for layer in layers[1:]),
        (base.norm, SECOND),
        (model.lm_head, SECOND),
    ]:
        for tensor in (*part.parameters(), *part.buffers()):
            place(tensor, device)
        hook = AlignDevicesHook(device, io_same_device=part is base.rotary_emb, skip_keys=["cache", "past_key_values"])
        add_hook_to_module(part, hook)
    return model


def generate(model: Any, policy: Policy, device: torch.device, **options: Any) -> tuple[Any, PolicyCache]:
    enable(model)
    inputs = {name: place(data.clone(), device) for name, data in PROMPTS.items()}
    cache = PolicyCache(model, policy, inputs=inputs)
    torch.manual_seed(0)
    options = {"do_sample": "num_return_sequences" in options, "max_new_tokens": 8, **options}
    return model.generate(**inputs, past_key_values=cache, **options).tolist(), cache


def test_the_devices_are_told_apart(devices: None) -> None:
    one, other = place(torch.ones(2), FIRST), place(torch.ones(2), SECOND)
    with pytest.raises(RuntimeError, match="add of tensors on cuda:0 and cuda:1"):
        one + other
    with pytest.raises(RuntimeError, match="add of tensors on cpu and cuda:0"):
        one + torch.ones(2)
    with pytest.raises(RuntimeError, match="numpy of a tensor on cuda:1"):
        other.numpy()
    assert (one + other.to(one.device)).device == FIRST
    assert torch.zeros_like(other).device == torch.arange(2, device=SECOND).device == SECOND
    assert other.cpu().numpy().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", [*POLICIES, *MORE])
def test_tokens_are_those_of_one_device(name: str) -> None:
    policy = {**POLICIES, **MORE}[name]
    alone, _ = generate(new_model(), policy, torch.device("cpu"))
    with PretendedDevices():
        tokens, cache = generate(spread(), policy, FIRST)
        views = [layer.store.view() for layer in cache.session._layers]
    assert tokens == alone
    for view, device in zip(views, (FIRST, SECOND, SECOND), strict=True):
        parts = [view.keys, view.values, view.positions, view.valid, *(c.data for c in view.columns.values())]
        assert {place_of(part) for part in parts} == {device}


@pytest.mark.parametrize("way", WAYS)
def test_batch_rows_are_selected_on_every_device(way: str) -> None:
    policy = Policy(prefill=POLICIES["elastic_cache"].prefill, decode=POLICIES["tova"].decode)
    alone, _ = generate(new_model(), policy, torch.device("cpu"), **WAYS[way])
    with PretendedDevices():
        assert generate(spread(), policy, FIRST, **WAYS[way])[0] == alone


def test_a_copy_and_what_is_taken_back() -> None:
    with PretendedDevices():
        _, cache = generate(spread(), kvpolicy.full(), FIRST)
        copied = copy.deepcopy(cache)
        copied.crop(-3)
        copied.batch_repeat_interleave(2)
        assert [view.session.batch for view in (cache, copied)] == [2, 4]
        assert {place_of(layer.store.view().keys) for layer in copied.session._layers} == {FIRST, SECOND}
