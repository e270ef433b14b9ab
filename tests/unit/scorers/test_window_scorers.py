"""WindowMass and EliteMass: what the latest queries attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from driving import Request, make_request, with_image
from scoring import BACKENDS, agrees, of_group, paid, watch

from kvpolicy import PolicyError
from kvpolicy.scorers import EliteMass, WindowMass

INF = float("inf")


def window_mass(window: int, *, mean: bool = False, keep: bool = True) -> Callable[[Request, int], Any]:
    def scores(request: Request, seen: int) -> list[list[float]]:
        heads, start = request.keys.shape[2], max(seen - window, 0)
        lines = [[of_group(paid(request), h, heads)[start:seen, j].sum() for j in range(seen)] for h in range(heads)]
        if mean:
            lines = [np.mean(lines, axis=0).tolist()] * heads
        return [[INF if keep and j >= start else score for j, score in enumerate(line)] for line in lines]

    return scores


def elite_queries(request: Request, seen: int, window: int, threshold: float) -> list[int]:
    attention, matters = paid(request), {}
    for i in range(max(seen - window, 0), seen):
        if request.segment is None or request.segment[0, i] == 0:
            matters[i] = attention[:, seen - 1, i].mean()
    most = max(matters.values(), default=0.0)
    return sorted({seen - 1, *(i for i, m in matters.items() if m >= threshold * most)})


def elite_mass(window: int, threshold: float, *, mean: bool = False) -> Callable[[Request, int], Any]:
    def scores(request: Request, seen: int) -> list[list[float]]:
        heads, elite = request.keys.shape[2], elite_queries(request, seen, window, threshold)
        lines = [[of_group(paid(request), h, heads)[elite, j].sum() for j in range(seen)] for h in range(heads)]
        return [np.mean(lines, axis=0).tolist()] * heads if mean else lines

    return scores


@pytest.mark.parametrize("window", [1, 3, 8, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_window_mass_is_the_formula(backend: str, window: int) -> None:
    agrees(WindowMass(window), window_mass(window), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_over_heads_without_its_own_rows(backend: str) -> None:
    scorer = WindowMass(4, heads="mean", keep_window=False)
    agrees(scorer, window_mass(4, mean=True, keep=False), backend=backend)


@pytest.mark.parametrize("window", [1, 4, 64])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_elite_mass_is_the_formula(backend: str, threshold: float, window: int) -> None:
    agrees(EliteMass(window, threshold), elite_mass(window, threshold), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_elite_mean_over_heads(backend: str) -> None:
    agrees(EliteMass(heads="mean"), elite_mass(64, 0.1, mean=True), backend=backend)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_keys_are_scored_in_float32(dtype: str) -> None:
    agrees(WindowMass(3, keep_window=False), window_mass(3, keep=False), dtype=dtype, tolerance=1e-5)
    agrees(EliteMass(8, 0.3), elite_mass(8, 0.3), dtype=dtype, tolerance=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_segments_all_queries_are_text(backend: str) -> None:
    request = make_request(seed=8, groups=2, prompt=14, steps=0)
    (said,) = watch(EliteMass(10, 0.4), request, backend=backend)
    elite = elite_queries(request, 14, 10, 0.4)
    assert 1 < len(elite) < 10
    for h in range(2):
        due = of_group(paid(request), h, 2)[elite].sum(axis=0)
        assert said.line(0, h)[1] == pytest.approx(due.tolist(), rel=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", [0, 13])
def test_where_all_is_image_only_the_last_query_counts(backend: str, start: int) -> None:
    request = with_image(make_request(seed=9, prompt=14, steps=0), 0, 14)
    assert request.segment is not None
    request = replace(request, segment=np.where(np.arange(14) < start, 1, request.segment))
    (said,) = watch(EliteMass(14), request, backend=backend)
    for h in range(2):
        assert said.line(0, h)[1] == pytest.approx(paid(request)[h, 13].tolist(), rel=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_whose_rows_have_gone_still_ask(backend: str) -> None:
    """The window's own rows may be evicted: without a row a query matters to nobody, in that head."""
    request = make_request(seed=5, heads=1, prompt=8, steps=1)
    said = watch(EliteMass(4, 0.5), request, backend=backend, keep=[0, 2, 6])[-1]
    rows = [0, 2, 6, 8]
    logits = request.scale * request.queries[0, 0, 0] @ request.keys[0, 0, 0, rows].T

    def attention(i: int) -> Any:
        powers = np.where(np.array(rows) <= i, np.exp(logits[i]), 0.0)
        return powers / powers.sum()

    matters = {5: 0.0, 6: attention(8)[2], 7: 0.0, 8: attention(8)[3]}
    elite = {8, *(i for i, m in matters.items() if m >= 0.5 * max(matters.values()))}
    positions, scores = said.line(0, 0)
    assert positions == rows
    assert scores == pytest.approx(sum(attention(i) for i in elite).tolist(), rel=1e-11)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: WindowMass(0), "window=0"),
        (lambda: WindowMass(2.5), "window=2.5"),  # type: ignore[arg-type]
        (lambda: WindowMass(heads="all"), "heads='all'"),  # type: ignore[arg-type]
        (lambda: WindowMass(keep_window="no"), "keep_window='no'"),  # type: ignore[arg-type]
        (lambda: EliteMass(window=0), "window=0"),
        (lambda: EliteMass(threshold=1.5), "threshold=1.5"),
        (lambda: EliteMass(heads="all"), "heads='all'"),  # type: ignore[arg-type]
    ],
)
def test_refusals(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make()
    assert says in str(caught.value)
