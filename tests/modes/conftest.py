"""Fixtures for the generation modes, whose models are those of the adapter's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))

from models import new_llama
from ours import POLICIES
from plain import Plain
from transformers import PreTrainedModel

from kvpolicy_hf import enable


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """A tiny enabled Llama; a test must not change it."""
    made = new_llama()
    enable(made)
    return made


@pytest.fixture(scope="session")
def plain_of(model: PreTrainedModel) -> Callable[[str], Plain]:
    """The model under one of the policies, run plainly; what it was asked once it knows."""
    known: dict[str, Plain] = {}

    def get(name: str) -> Plain:
        if name not in known:
            known[name] = Plain(model, POLICIES[name])
        return known[name]

    return get


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
