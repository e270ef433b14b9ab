"""Composition is the product: what can be built runs on a real model and keeps the invariants; the rest says why."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from invariants import assert_books, assert_plan
from stages import FACTORS, HEADS, LAYERS, cover, policy_of, why_refused
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from kvpolicy import CacheView, Drop, FixedRows, MemoryBudget, Plan, PolicyError, Step
from kvpolicy_hf import PolicyCache, enable

NEW, PAD = 5, (0, 4)
COVER = list(cover())
BUILT = ["score", "allocate", "select", "merge", "recall", "phase", "attend"]


def test_every_composition_is_built_or_refused_for_a_documented_reason() -> None:
    built, refused = 0, 0
    for stages in itertools.product(*(FACTORS[name] for name in BUILT)):
        choice = dict(zip(BUILT, stages, strict=True)) | {"schedule": FixedRows(9)}
        said, reason = refusal(choice), why_refused(choice)
        assert (said is None) == (reason is None), f"{choice}: {said or 'was built'}"
        assert reason is None or (said is not None and reason in said)
        built, refused = built + (said is None), refused + (said is not None)
    print(f"{built} compositions built, {refused} refused")
    assert (built, refused) == (114_380, 63_820)


def refusal(choice: dict[str, Any]) -> str | None:
    """What the library says against it."""
    try:
        policy_of(choice)
    except PolicyError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def model(device: str) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2 * HEADS,
        "num_key_value_heads": HEADS,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 12,
        "patch_size": 4,
        "projection_dim": 16,
    }
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    made = LlavaForConditionalGeneration(config).eval().to(device)
    enable(made)
    return made


@pytest.fixture(scope="module")
def inputs(device: str) -> dict[str, Tensor]:
    """Two prompts with nine image tokens each, the second shorter by four."""
    draw = torch.Generator().manual_seed(3)
    rows = []
    for pad in PAD:
        words = torch.randint(3, 64, (12 - pad,), generator=draw)
        row = torch.cat([words[:3], torch.full((9,), 2), words[3:]])
        rows.append(torch.nn.functional.pad(row, (pad, 0)))
    ids = torch.stack(rows)
    pixels = torch.randn(2, 3, 12, 12, generator=draw)
    made = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}
    return {name: data.to(device) for name, data in made.items()}


def run(model: Any, inputs: dict[str, Tensor], cache: PolicyCache) -> Tensor:
    said: Tensor = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    return said[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("choice", COVER, ids=range(len(COVER)))
def test_it_runs_and_keeps_the_invariants(choice: dict[str, Any], model: Any, inputs: dict[str, Tensor]) -> None:
    policy = policy_of(choice)
    plans: list[tuple[CacheView, Plan, Step]] = []

    def listen(layer: int, view: CacheView, plan: Plan, step: Step) -> None:
        assert_plan(policy, view, plan, step)
        plans.append((view, plan, step))

    cache = PolicyCache(model, policy, inputs=inputs, listen=listen)
    said = run(model, inputs, cache)
    assert_books(policy, cache, inputs, NEW)
    assert plans or choice["phase"] == "decode", "nothing was ever planned"

    cache.reset()  # request 2 after request 1 equals request 1
    assert torch.equal(run(model, inputs, cache), said), "something leaked from one request to the next"

    for row, pad in enumerate(PAD):  # a row of a padded batch gives what it gives alone
        if isinstance(choice["schedule"], MemoryBudget):
            continue  # bytes of the whole request: another batch, another budget
        alone = {name: data[row : row + 1, pad:] if name != "pixel_values" else data[row : row + 1]
                 for name, data in inputs.items()}  # fmt: skip
        assert torch.equal(run(model, alone, PolicyCache(model, policy, inputs=alone))[0], said[row])


def test_a_plain_eviction_costs_its_share_of_storage(model: Any, inputs: dict[str, Tensor]) -> None:
    choice = {name: options[0] for name, options in FACTORS.items()} | {"phase": "both", "merge": Drop()}
    cache = PolicyCache(model, policy_of(choice), inputs=inputs)
    run(model, inputs, cache)
    report = cache.report()
    assert report.kv_bytes < 0.7 * report.full_kv_bytes
