"""KeyNorm, KeyDifference, Noise and ColumnScore: what needs no attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from driving import Request, make_request
from scoring import BACKENDS, agrees, replace, watch

from kvpolicy import CacheView, Column, MissingColumnError, PolicyError, Step
from kvpolicy.scorers import ColumnScore, KeyDifference, KeyNorm, Noise


def key_norm(request: Request, seen: int) -> list[list[float]]:
    return [[-math.sqrt(key @ key) for key in request.keys[0, 0, h, :seen]] for h in range(request.keys.shape[2])]


def key_difference(request: Request, seen: int) -> list[list[float]]:
    out = []
    for keys in request.keys[0, 0, :, :seen]:
        units = [key / math.sqrt(key @ key) if key.any() else key for key in keys]
        mean = sum(units) / seen
        length = math.sqrt(mean @ mean)
        out.append([-float(unit @ mean) / length if length > 0 else 0.0 for unit in units])
    return out


def noise(seed: int) -> Callable[[Request, int], list[list[float]]]:
    def at(position: int) -> float:
        x = (seed * 2654435761 + position * 69069 + 12345) % 2**31
        for _ in range(3):
            x ^= x >> 15
            x = (x * 739982445) % 2**31
            x ^= x >> 12
        return x / 2**31

    return lambda request, seen: [[at(j) for j in range(seen)]] * request.keys.shape[2]


SCORERS: list[tuple[Any, Callable[[Request, int], Any]]] = [
    (KeyNorm(), key_norm),
    (KeyDifference(), key_difference),
    (Noise(), noise(0)),
    (Noise(2**40), noise(2**40)),
]


@pytest.mark.parametrize(("scorer", "formula"), SCORERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_formula(backend: str, scorer: Any, formula: Any) -> None:
    agrees(scorer, formula, backend=backend)


@pytest.mark.parametrize(("scorer", "formula"), SCORERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_keys_are_scored_in_float32(dtype: str, scorer: Any, formula: Any) -> None:
    agrees(scorer, formula, dtype=dtype, tolerance=1e-5)


@pytest.mark.parametrize("scorer", [KeyNorm(), KeyDifference()])
@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_of_every_length(backend: str, scorer: Any) -> None:
    """Zero, so short or long that a square is 0 or infinite, and infinite: never NaN, lengths in their order."""
    request = make_request(prompt=6, steps=0)
    for n, length in enumerate([0.0, 1e-30, 1.0, 1e30, float("inf")]):
        request.keys[..., n, :] = [length, -length, length, -length]
    request.keys[..., 5, :] = [0.5, 0.5, 0.5, 0.5]
    (said,) = watch(scorer, request, backend=backend, dtype="float32")
    if scorer == KeyNorm():
        due = [0.0, -2e-30, -2.0, -2e30, float("-inf"), -1.0]
    else:  # the mean points along the three of finite lengths and the last; orthogonal to each other
        due = [0.0, *(-3 / math.sqrt(10),) * 3, 0.0, -1 / math.sqrt(10)]
    for h in range(2):
        np.testing.assert_allclose(said.line(0, h)[1], due, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parallel_keys_tie_to_the_bit(backend: str) -> None:
    request = make_request(seed=1, dim=1, prompt=40, steps=0)
    (said,) = watch(KeyDifference(), request, backend=backend)
    assert len(set(np.abs(said.scores).ravel().tolist())) == 1
    (said,) = watch(KeyNorm(), request, backend=backend)
    assert np.array_equal(said.scores, -np.abs(request.keys[0, ..., 0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_cancel_are_alike_to_nothing(backend: str) -> None:
    request = make_request(prompt=4, steps=0)
    request.keys[...] = np.array([1.0, -1.0, 1.0, -1.0])[:, None]
    (said,) = watch(KeyDifference(), request, backend=backend)
    assert not said.scores.any()


def test_noise_looks_uniform_and_layers_differ() -> None:
    (said,) = watch(Noise(7), make_request(heads=1, dim=1, prompt=4000, steps=0))
    line = said.scores[0, 0]
    assert 0 <= line.min() < line.max() < 1
    assert np.histogram(line, 8, (0, 1))[0] == pytest.approx(np.full(8, 500), abs=100)
    assert abs(np.corrcoef(line[:-1], line[1:])[0, 1]) < 0.05
    other = Noise(7).score(replace(said.view, layer=1), said.step)
    assert abs(np.corrcoef(line, other.numpy()[0, 0])[0, 1]) < 0.05


@pytest.mark.parametrize("seed", [-1, 1.5, "x", None, True])
def test_a_seed_that_is_none(seed: Any) -> None:
    with pytest.raises(PolicyError, match="seed="):
        Noise(seed)


class Watching:
    """Observes a column of integers, and another stage scores by it."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def observe(self, view: CacheView, step: Step, /) -> Any:
        heads = view.xp.arange(view.shape[1], dtype=view.xp.int64)[:, None]
        return {"mine": Column(view.positions * (heads + 1))}

    def score(self, view: CacheView, step: Step, /) -> Any:
        return self.scorer.score(view, step)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_column_of_ones_own(backend: str) -> None:
    request = make_request(prompt=5, steps=0)
    (each,) = watch(Watching(ColumnScore("mine")), request, backend=backend)
    assert each.scores.tolist() == [[[0, 1, 2, 3, 4], [0, 2, 4, 6, 8]]]
    (mean,) = watch(Watching(ColumnScore("mine", heads="mean")), request, backend=backend)
    assert mean.scores.tolist() == [[[0, 1.5, 3, 4.5, 6]] * 2]
    (count,) = watch(ColumnScore("count"), request, backend=backend)
    assert count.scores.tolist() == [[[1.0] * 5] * 2]


def test_a_column_that_is_missing() -> None:
    with pytest.raises(MissingColumnError) as caught:
        watch(ColumnScore("mine"), make_request())
    for part in ("ColumnScore('mine') needs column 'mine'", "this cache has: count", "columns={'mine': ...}"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ColumnScore(""), "name=''"),
        (lambda: ColumnScore(3), "name=3"),  # type: ignore[arg-type]
        (lambda: ColumnScore("x", heads="all"), "heads='all'"),  # type: ignore[arg-type]
    ],
)
def test_refusals(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make()
    assert says in str(caught.value)
