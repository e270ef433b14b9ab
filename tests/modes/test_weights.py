"""Quantised weights are the model's own affair: the policy sees the queries and keys that they give."""

from __future__ import annotations

import pytest
import torch
from expected import Mode, modes_of
from models import new_llama
from ours import COUNT, POLICIES, SETTINGS, added, repeating
from plain import Plain
from torch import Tensor

from kvpolicy_hf import PolicyCache, enable


class Int8Linear(torch.nn.Module):
    """A linear layer whose weights are bytes, with a scale for each output."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__()
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("bytes", (plain.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.bytes.to(x.dtype) * self.scale).T


def quantise(module: torch.nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, torch.nn.Linear):
            setattr(module, name, Int8Linear(part))
        else:
            quantise(part)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", modes_of("test_weights.py::test_int8_weights"), ids=repr)
def test_int8_weights(mode: Mode, policy: str) -> None:
    model = new_llama()
    quantise(model.model.layers)
    enable(model)
    inputs, plain = repeating(), Plain(model, POLICIES[policy])
    due = plain.greedy((tuple(inputs["input_ids"][0].tolist()),), COUNT, len(SETTINGS["suppress_tokens"]))
    for options in ({}, {"prompt_lookup_num_tokens": 3}):
        cache = PolicyCache(model, POLICIES[policy], inputs=inputs)
        assert added(model.generate(**inputs, **SETTINGS, **options, past_key_values=cache), inputs) == [due]
