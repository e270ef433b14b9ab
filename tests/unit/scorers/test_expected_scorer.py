"""ExpectedAttention: a Gaussian over the latest queries, asked at the positions to come."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from driving import Request, drive, make_request, rotary
from scoring import BACKENDS, agrees, replace, watch

from kvpolicy import CacheError, Column, FixedRows, Pipeline, Policy, PolicyError
from kvpolicy.scorers import ExpectedAttention


def turned(x: Any, by: int) -> Any:
    half = len(x) // 2
    out = np.zeros(len(x))
    for i in range(half):
        angle = by * 10000.0 ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def expected(
    window: int = 128, future: int = 512, epsilon: float = 0.0, *, covariance: bool = True
) -> Callable[[Request, int], Any]:
    def scores(request: Request, seen: int) -> list[list[float]]:
        heads, dim, start = request.keys.shape[2], request.keys.shape[4], max(seen - window, 0)
        group = request.queries.shape[2] // heads
        turn = sum(np.stack([turned(axis, seen - 1 + t) for axis in np.eye(dim)], axis=1) for t in range(1, future + 1))
        turn = turn / future
        out = []
        for h in range(heads):
            share = np.zeros(seen)
            for g in range(group):
                plain = [turned(request.queries[0, 0, h * group + g, i], -i) for i in range(start, seen)]
                mean = sum(plain) / len(plain)
                spread = sum(np.outer(x - mean, x - mean) for x in plain) / len(plain)
                logits = []
                for key in request.keys[0, 0, h, :seen]:
                    logit = request.scale * key @ turn @ mean
                    if covariance:
                        logit += request.scale**2 / 2 * key @ turn @ spread @ turn.T @ key
                    logits.append(logit)
                powers = np.exp(np.array(logits) - max(logits))
                share += powers / powers.sum() / group
            lengths = [math.sqrt(value @ value) for value in request.values[0, 0, h, :seen]]
            out.append([(share[j] + epsilon) * lengths[j] for j in range(seen)])
        return out

    return scores


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_formula(backend: str) -> None:
    agrees(ExpectedAttention(future=21), expected(future=21), backend=backend, rotate=rotary)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("covariance", [True, False])
def test_a_window(window: int, *, covariance: bool) -> None:
    scorer = ExpectedAttention(window, future=5, epsilon=0.02, covariance=covariance)
    agrees(scorer, expected(window, 5, 0.02, covariance=covariance), rotate=rotary)


@pytest.mark.parametrize("future", [1, 2, 3, 8, 100, 512])
def test_any_number_of_positions_ahead(future: int) -> None:
    request = make_request(seed=4, groups=2, prompt=9, steps=0)
    (said,) = watch(ExpectedAttention(future=future), request, rotate=rotary)
    due = expected(future=future)(request, 9)
    for h in range(2):
        assert said.line(0, h)[1] == pytest.approx(due[h], rel=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_keys_are_scored_in_float32(dtype: str) -> None:
    agrees(ExpectedAttention(future=7), expected(future=7), dtype=dtype, tolerance=3e-5, chunked=False, rotate=rotary)


def test_rows_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request(seed=4, groups=3, prompt=11, steps=0)
    (whole,) = watch(ExpectedAttention(), request, rotate=rotary)
    monkeypatch.setattr("kvpolicy.scorers.expected._ELEMENTS", 100)
    (parts,) = watch(ExpectedAttention(), request, rotate=rotary)
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_merged_rows_weigh_their_count_where_the_model_weighs_them(backend: str) -> None:
    request = make_request(seed=2, heads=1, prompt=6, steps=0)
    (said,) = watch(ExpectedAttention(), request, backend=backend, rotate=rotary)
    counts = said.view.columns["count"].data + 0
    counts[..., 2] = 3.0
    view = said.view.with_columns({"count": Column(counts)})
    host = said.step.ops.host
    plain = host(ExpectedAttention().score(view, said.step))
    np.testing.assert_allclose(plain, said.scores)
    biased = host(ExpectedAttention().score(view, replace(said.step, count_bias=True)))
    weighed = said.scores * np.array([1.0, 1.0, 3.0, 1.0, 1.0, 1.0])
    lengths = np.linalg.norm(request.values[0], axis=-1)
    np.testing.assert_allclose(biased, weighed / (weighed / lengths).sum(), rtol=1e-10)


@pytest.mark.parametrize("rotate", [None, rotary])
def test_without_a_rotary_embedding(rotate: Any) -> None:
    policy = Policy(prefill=Pipeline(schedule=FixedRows(3), score=ExpectedAttention()))
    if rotate is None:
        with pytest.raises(CacheError, match=r"ExpectedAttention .*rotate=None.*Hint: Session\(rotate=") as caught:
            drive(policy, make_request())
        assert "plain rotary" in str(caught.value)
    else:
        drive(policy, make_request(), rotate=rotate)


@pytest.mark.parametrize(
    "arguments",
    [{"window": 0}, {"future": 0}, {"future": 2.0}, {"epsilon": -1}, {"epsilon": float("nan")}, {"covariance": 1.5}],
)
def test_refusals(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(PolicyError, match=f"{name}="):
        ExpectedAttention(**arguments)
