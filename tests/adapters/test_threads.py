"""One policy and one model serve many requests at once; nothing is shared but what never changes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from models import LLAMA, LLAVA, MIXED, Family, Inputs, new_tokens, text_row
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from kvpolicy import Policy, Report
from kvpolicy_hf import PolicyCache

ModelOf = Callable[[Family], PreTrainedModel]
THREADS = 4


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let threads interrupt each other far more often than they normally do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    yield
    sys.setswitchinterval(before)


def prompts(family: Family) -> list[Inputs]:
    """One for each thread, of different lengths and batch sizes."""
    return [family.rows()[0], family.batch(), family.even(), text_row(52, 9)]


@pytest.mark.parametrize(
    "policy",
    [kvpolicy.full(), kvpolicy.elastic_cache(keep=0.3), kvpolicy.h2o(rows=12), kvpolicy.streaming_llm(keep=0.3)],
    ids=["full", "elastic_cache", "h2o", "streaming_llm"],
)
@pytest.mark.parametrize("family", [LLAMA, LLAVA, MIXED], ids=repr)
def test_concurrent_requests_give_what_they_give_alone(family: Family, policy: Policy, model_of: ModelOf) -> None:
    model = model_of(family)
    unchanged = copy.deepcopy(policy)

    def request(inputs: Inputs, start: Barrier | None = None) -> tuple[Tensor, Report]:
        with torch.no_grad():  # the mode is a thread's own
            cache = PolicyCache(model, policy, inputs=inputs)
            if start is not None:
                start.wait()
            return new_tokens(model, inputs, past_key_values=cache), cache.report()

    alone = [request(inputs) for inputs in prompts(family)]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(2):
            start = Barrier(THREADS)
            together = list(pool.map(lambda inputs, start=start: request(inputs, start), prompts(family)))
            for (tokens, report), (expected, its_report) in zip(together, alone, strict=True):
                assert torch.equal(tokens, expected)
                assert report == its_report
    assert policy == unchanged


def test_different_policies_at_once(model_of: ModelOf) -> None:
    model, inputs = model_of(LLAMA), LLAMA.batch()
    policies = [kvpolicy.full(), kvpolicy.elastic_cache(rows=12), kvpolicy.h2o(keep=0.3), kvpolicy.h2o(keep=0.6)]

    def request(policy: Policy) -> Tensor:
        with torch.no_grad():
            return new_tokens(model, inputs, past_key_values=PolicyCache(model, policy, inputs=inputs))

    alone = [request(policy) for policy in policies]
    assert len({tuple(tokens.flatten().tolist()) for tokens in alone}) == len(policies)
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(request, policies), alone))
