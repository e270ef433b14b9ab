"""Integer shares: exact, capped, as near to the proportions as integers can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.allocators._apportion import apportion


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch, size = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    cell = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
    weights = np.array(draw(st.lists(cell, min_size=batch * size, max_size=batch * size))).reshape(batch, size)
    caps = np.array(draw(st.lists(st.integers(0, 40), min_size=batch * size, max_size=batch * size)))
    caps = caps.reshape(batch, size)
    total = np.array([draw(st.integers(0, int(row.sum()))) for row in caps])
    return weights, total, caps


@given(problems())
def test_the_total_is_exact_and_no_cap_is_passed(problem) -> None:
    weights, total, caps = problem
    rows = apportion(weights, total, caps)
    assert rows.dtype == np.int64
    assert np.array_equal(rows.sum(axis=1), total)
    assert np.all((rows >= 0) & (rows <= caps))


@given(problems())
def test_batch_rows_do_not_touch_each_other(problem) -> None:
    weights, total, caps = problem
    together = apportion(weights, total, caps)
    for n in range(len(total)):
        assert np.array_equal(apportion(weights[n : n + 1], total[n : n + 1], caps[n : n + 1])[0], together[n])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.integers(0, 200))
def test_uncapped_it_is_hamiltons_method(weights, total) -> None:
    """By the book: floors of the exact quotas, then one more for the largest remainders, the earlier first."""
    exact = [total * weight / sum(weights) for weight in weights]
    rows = [int(share + 1e-9) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda n: (-(exact[n] - rows[n]), n))
    for n in by_remainder[: total - sum(rows)]:
        rows[n] += 1
    got = apportion(np.array([weights]), np.array([total]), np.full((1, len(weights)), total))[0].tolist()
    assert got == rows


@pytest.mark.parametrize(
    ("weights", "total", "caps", "expected"),
    [
        ([1, 1, 1], 10, [10, 10, 10], [4, 3, 3]),  # ties go to the earlier
        ([8, 1, 1], 10, [4, 10, 10], [4, 3, 3]),  # what a cap cuts off is shared by the others
        ([0, 0, 1], 9, [5, 5, 3], [3, 3, 3]),  # weights of zero share what nobody else can take
        ([2, 1], 3, [9, 9], [2, 1]),
    ],
)
def test_by_hand(weights, total, caps, expected) -> None:
    assert apportion(np.array([weights], float), np.array([total]), np.array([caps]))[0].tolist() == expected


def test_caps_that_cannot_hold_the_total_are_an_error() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        apportion(np.ones((1, 2)), np.array([5]), np.array([[2, 2]]))
