"""AttentionMass against its formulas: the sum, the mean over those who asked, the moving average."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from driving import Request, drive, make_request
from scoring import BACKENDS, agrees, of_group, paid, watch

from kvpolicy import AttentionMass, FixedRows, Pipeline, Policy, PolicyError


def summed(request: Request, seen: int, heads: int) -> list[list[float]]:
    return [[of_group(paid(request), h, heads)[:seen, j].sum() for j in range(seen)] for h in range(heads)]


def averaged(request: Request, seen: int, heads: int) -> list[list[float]]:
    return [[mass / (seen - j) for j, mass in enumerate(line)] for line in summed(request, seen, heads)]


def moved(request: Request, seen: int, heads: int, decay: float = 0.9) -> list[list[float]]:
    out = []
    for h in range(heads):
        attention, line = of_group(paid(request), h, heads), [0.0] * seen
        for i in range(seen):
            line = [decay * line[j] + (1 - decay) * attention[i, j] for j in range(seen)]
        out.append(line)
    return out


FORMULAS = {"sum": summed, "mean": averaged, "moving": moved}


def by_head(formula: Any, heads: str = "each", **arguments: Any) -> Any:
    def scores(request: Request, seen: int) -> Any:
        lines = formula(request, seen, request.keys.shape[2], **arguments)
        return lines if heads == "each" else [np.mean(lines, axis=0)] * len(lines)

    return scores


@pytest.mark.parametrize("heads", ["each", "mean"])
@pytest.mark.parametrize("reduce", FORMULAS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_formula(backend: str, reduce: Any, heads: Any) -> None:
    scorer = AttentionMass(heads=heads, reduce=reduce)
    agrees(scorer, by_head(FORMULAS[reduce], heads), backend=backend)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_decay(decay: float) -> None:
    agrees(AttentionMass(reduce="moving", decay=decay), by_head(moved, decay=decay))


@pytest.mark.parametrize("reduce", FORMULAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_keys_are_scored_in_float32(dtype: str, reduce: Any) -> None:
    agrees(AttentionMass(reduce=reduce), by_head(FORMULAS[reduce]), dtype=dtype, tolerance=1e-5)


@pytest.mark.parametrize("reduce", FORMULAS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_go_with_their_rows(backend: str, reduce: Any) -> None:
    """After an eviction the survivors go on from what they had, and later queries only see those that are left."""
    request, keep = make_request(groups=2, prompt=9, steps=2), [0, 3, 8]
    first, *later = watch(AttentionMass(reduce=reduce), request, backend=backend, keep=keep)
    before = FORMULAS[reduce](request, 9, 2)
    for h in range(2):
        assert first.line(0, h)[1] == pytest.approx(before[h], rel=1e-11)
        mass = [summed(request, 9, 2)[h][j] for j in keep]
        average = [moved(request, 9, 2)[h][j] for j in keep]
        rows = list(keep)
        for one, token in zip(later, (9, 10), strict=True):
            rows.append(token)
            mass.append(0.0)
            average.append(0.0)
            now = np.zeros(len(rows))
            for g in range(2):
                logits = request.scale * request.keys[0, 0, h, rows] @ request.queries[0, 0, 2 * h + g, token]
                now += np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() / 2
            mass = [m + a for m, a in zip(mass, now, strict=True)]
            average = [0.9 * m + 0.1 * a for m, a in zip(average, now, strict=True)]
            asked = [token + 1 - row for row in rows]
            due = {"sum": mass, "mean": [m / n for m, n in zip(mass, asked, strict=True)], "moving": average}[reduce]
            positions, scores = one.line(0, h)
            assert positions == rows
            assert scores == pytest.approx(due, rel=1e-11)


@pytest.mark.parametrize("reduce", FORMULAS)
def test_what_it_observes_is_what_it_says(reduce: Any) -> None:
    scorer = AttentionMass(reduce=reduce)
    trace = drive(Policy(prefill=Pipeline(schedule=FixedRows(4), score=scorer)), make_request())
    assert set(trace.passes[0].tables[0][0][0].columns) == {"count", *scorer.columns}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"heads": "both"}, "heads='both'"),
        ({"reduce": "max"}, "reduce='max'"),
        ({"decay": 1}, "decay=1"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"decay": "x"}, "decay='x'"),
    ],
)
def test_refusals(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        AttentionMass(**arguments)
    assert says in str(caught.value)
