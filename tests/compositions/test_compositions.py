"""Composition is the product: what can be built runs on a real model and keeps the invariants; the rest says why."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from invariants import assert_books, assert_plan
from stages import FACTORS, cover, policy_of, why_refused
from torch import Tensor

from kvpolicy import CacheView, Drop, FixedRows, MemoryBudget, Plan, PolicyError, Step
from kvpolicy_hf import PolicyCache

NEW, PAD = 5, (0, 4)  # PAD: as the fixture `inputs` has it
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
