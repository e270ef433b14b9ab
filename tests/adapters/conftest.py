"""Fixtures for the adapter's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from models import Family
from transformers import PreTrainedModel

from kvpolicy_hf import enable


@pytest.fixture(scope="session")
def _enabled() -> dict[str, PreTrainedModel]:
    return {}


@pytest.fixture
def model_of(_enabled: dict[str, PreTrainedModel]) -> Callable[[Family], PreTrainedModel]:
    """An enabled model of a family, made once a session; a test must not change it."""

    def get(family: Family) -> PreTrainedModel:
        if family.name not in _enabled:
            model = family.new()
            enable(model)
            _enabled[family.name] = model
        return _enabled[family.name]

    return get


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """Forward passes by hand need none; the tests of training switch them on themselves."""
    import torch

    with torch.no_grad():
        yield
