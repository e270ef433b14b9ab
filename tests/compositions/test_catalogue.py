"""Every recipe runs through `generate`: on the demo's vision-language model, and on SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from invariants import assert_books, assert_plan

from kvpolicy import RECIPES, CacheView, Plan, Policy, Step, full, head_kv
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model

NEW = 5
Inputs = dict[str, torch.Tensor]


def recipe(name: str, keep: float, model: Any) -> Policy:
    """The recipe at a budget; a table for the model where it wants one."""
    if name == "full":
        return full()
    text = model.config.get_text_config()
    heads, layers = text.num_key_value_heads, text.num_hidden_layers
    table = tuple(tuple(1 + (layer + 2 * head) % 3 for head in range(heads)) for layer in range(layers))
    return head_kv(keep=keep, table=table) if name == "head_kv" else RECIPES[name](keep=keep)


@pytest.fixture(scope="module")
def demo(device: str) -> tuple[Any, Inputs]:
    """The demo's model and two of its questions, the shorter padded on the left."""
    model, processor = load_model("demo")
    model = model.float().to(device)
    enable(model)
    cases = drawn_cases(3, pictures=1)
    one, other = (encode(processor, case.prompt, device) for case in (cases[0], cases[-1]))
    width = max(one["input_ids"].shape[1], other["input_ids"].shape[1]) + 2
    rows: list[Inputs] = []
    for inputs in (one, other):
        pad = width - inputs["input_ids"].shape[1]
        ids = torch.nn.functional.pad(inputs["input_ids"], (pad, 0), value=processor.tokenizer.pad_token_id or 0)
        mask = torch.nn.functional.pad(torch.ones_like(inputs["input_ids"]), (pad, 0))
        rows.append({"input_ids": ids, "attention_mask": mask, "pixel_values": inputs["pixel_values"]})
    return model, {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def smollm2(device: str) -> tuple[Any, Inputs]:
    """SmolLM2-135M and one text of 72 tokens."""
    model, tokenizer = load_model("smollm2")
    model = model.to(device)
    enable(model)
    inputs = tokenizer(topics["for"], return_tensors="pt")
    return model, {name: inputs[name][:, :72].to(device) for name in ("input_ids", "attention_mask")}


Fixture = Callable[[], tuple[Any, Inputs]]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("keep", [0.5, 0.15])
def test_on_the_demo_model(name: str, keep: float, demo: tuple[Any, Inputs]) -> None:
    check(recipe(name, keep, demo[0]), *demo)


@pytest.mark.parametrize("name", RECIPES)
def test_on_smollm2(name: str, smollm2: tuple[Any, Inputs]) -> None:
    check(recipe(name, 0.4, smollm2[0]), *smollm2)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("full", "streaming_llm")])
def test_a_budget_of_everything_is_the_full_cache(name: str, demo: tuple[Any, Inputs]) -> None:
    model, inputs = demo
    whole, _ = said(model, inputs, full())
    assert torch.equal(said(model, inputs, recipe(name, 1.0, model))[0], whole)


def check(policy: Policy, model: Any, inputs: Inputs) -> None:
    """The invariants, for the batch, for each of its rows alone, and for a second request."""
    plans = 0

    def listen(layer: int, view: CacheView, plan: Plan, step: Step) -> None:
        nonlocal plans
        plans += 1
        assert_plan(policy, view, plan, step)

    tokens, cache = said(model, inputs, policy, listen=listen)
    assert plans or policy == full()
    assert_books(policy, cache, inputs, NEW)
    if policy != full():
        assert cache.report().kv_bytes < cache.report().full_kv_bytes
    cache.reset()
    again = generate(model, inputs, cache)
    assert torch.equal(again, tokens), "something leaked from one request to the next"
    for row in range(len(tokens) if len(tokens) > 1 else 0):
        start = int((inputs["attention_mask"][row] == 0).sum())
        alone = {name: data[row : row + 1, start:] for name, data in inputs.items() if name != "pixel_values"}
        if "pixel_values" in inputs:
            alone["pixel_values"] = inputs["pixel_values"][row : row + 1]
        assert torch.equal(said(model, alone, policy)[0][0], tokens[row]), "a row of a batch is not what it is alone"


def said(model: Any, inputs: Inputs, policy: Policy, **options: Any) -> tuple[torch.Tensor, PolicyCache]:
    """New tokens, and the cache."""
    cache = PolicyCache(model, policy, inputs=inputs, **options)
    return generate(model, inputs, cache), cache


def generate(model: Any, inputs: Inputs, cache: PolicyCache) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model.generate(
            **inputs, past_key_values=cache, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )
    return out[:, inputs["input_ids"].shape[1] :]
