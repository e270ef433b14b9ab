"""The array namespace of an array."""

from __future__ import annotations

import array_api_compat
import numpy as np
import pytest
import torch

from kvpolicy._namespace import along, namespace


class Rows(np.ndarray):
    """A type that nothing else has asked for."""


def test_a_type_is_found_once_and_known_from_then_on() -> None:
    rows = np.zeros(2).view(Rows)
    assert namespace(rows) is array_api_compat.array_namespace(rows)
    assert namespace(rows) is namespace(np.zeros(2).view(Rows))


def test_each_library_has_its_own() -> None:
    assert namespace(np.zeros(2)) is not namespace(torch.zeros(2))
    assert namespace(torch.zeros(2)) is array_api_compat.array_namespace(torch.zeros(2))


@pytest.mark.parametrize(
    ("data", "index", "axis"),
    [
        ((2, 3, 5), (2, 3, 4), -1),
        ((2, 3, 5), (2, 1, 4), 2),  # one index for all heads
        ((2, 1, 5), (2, 3, 4), 2),  # one row of data for all heads
        ((2, 3, 5, 4), (2, 1, 7, 1), 2),  # whole vectors
        ((2, 3, 5), (2, 1, 5), 1),
    ],
)
@pytest.mark.parametrize("bools", [False, True])
def test_what_lies_along_an_axis_is_picked_alike(
    data: tuple[int, ...], index: tuple[int, ...], axis: int, bools: bool
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal(data) > 0 if bools else rng.standard_normal(data)
    places = rng.integers(0, data[axis], index)
    due = np.take_along_axis(rows, places, axis)
    assert (along(rows, places, axis=axis) == due).all()
    picked = along(torch.from_numpy(rows), torch.from_numpy(places), axis=axis)
    assert picked.shape == due.shape
    assert (picked.numpy() == due).all()
