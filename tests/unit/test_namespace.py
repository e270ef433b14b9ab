"""The array namespace of an array."""

from __future__ import annotations

import array_api_compat
import numpy as np
import torch

from kvpolicy._namespace import namespace


class Rows(np.ndarray):
    """A type that nothing else has asked for."""


def test_a_type_is_found_once_and_known_from_then_on() -> None:
    rows = np.zeros(2).view(Rows)
    assert namespace(rows) is array_api_compat.array_namespace(rows)
    assert namespace(rows) is namespace(np.zeros(2).view(Rows))


def test_each_library_has_its_own() -> None:
    assert namespace(np.zeros(2)) is not namespace(torch.zeros(2))
    assert namespace(torch.zeros(2)) is array_api_compat.array_namespace(torch.zeros(2))
