"""PostImageMass: what is asked after the last image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from driving import Request, make_request, with_image
from scoring import BACKENDS, CHUNKS, agrees, of_group, paid, replace, requests, watch

from kvpolicy import MissingColumnError, PolicyError
from kvpolicy.scorers import PostImageMass


def after_image(request: Request, seen: int) -> list[int]:
    assert request.segment is not None
    image = [j for j in range(seen) if request.segment[0, j] == 1]
    return list(range(max(image, default=-1) + 1, seen))


def mass(request: Request, seen: int) -> list[list[float]]:
    heads, queries = request.keys.shape[2], after_image(request, seen)
    return [[of_group(paid(request), h, heads)[queries, j].sum() for j in range(seen)] for h in range(heads)]


def mean_mass(request: Request, seen: int) -> list[Any]:
    lines = mass(request, seen)
    return [np.mean(lines, axis=0)] * len(lines)


def strong(request: Request, seen: int, threshold: float) -> list[list[float]]:
    heads, queries = request.keys.shape[2], after_image(request, seen)
    reached = paid(request) >= threshold * paid(request).max(axis=-1, keepdims=True)
    reached = reached & np.tril(np.ones(reached.shape[1:], dtype=bool))
    return [[of_group(reached, h, heads)[queries, j].sum() for j in range(seen)] for h in range(heads)]


@pytest.mark.parametrize("heads", ["each", "mean"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_formula(backend: str, heads: Any) -> None:
    agrees(PostImageMass(heads=heads), mass if heads == "each" else mean_mass, backend=backend)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_keys_are_scored_in_float32(dtype: str) -> None:
    agrees(PostImageMass(), mass, dtype=dtype, tolerance=1e-5)


SEGMENTS = {
    "none": [0] * 12,
    "one": [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    "two": [0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0],
    "at the end": [0] * 7 + [1] * 5,
    "alternating": [0, 1] * 6,
    "all": [1] * 12,
}


@pytest.mark.parametrize("shown", SEGMENTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_columns(backend: str, shown: str) -> None:
    """Whole and in chunks, so that an image in a later chunk starts the columns anew."""
    request = make_request(seed=6, groups=2, prompt=12, steps=2)
    request = replace(request, segment=np.array([[*SEGMENTS[shown], 0, 0]]))
    for chunks in ((), *CHUNKS, (1,) * 12):
        for one in watch(PostImageMass(threshold=0.3), request, backend=backend, chunks=chunks):
            seen = int(one.step.seen[0])
            queries = after_image(request, seen)
            due = {
                "after_image": mass(request, seen),
                "strong@0.3": strong(request, seen, 0.3),
                "asked_after": [[float(sum(i >= j for i in queries)) for j in range(seen)]] * 2,
            }
            for name, lines in due.items():
                for h in range(2):
                    data = one.step.ops.host(one.view.columns[name].data)[0, h]
                    np.testing.assert_allclose(data, lines[h], rtol=1e-11, atol=1e-12)
                assert name in PostImageMass(threshold=0.3).columns


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_batch_start_anew_by_themselves(backend: str) -> None:
    request = make_request(seed=7, batch=2, prompt=8, steps=0, padding=(0, 3))
    request = replace(request, segment=np.array([[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0]]))
    for chunks in ((), (4, 4), (6, 2)):
        said = watch(PostImageMass(), request, backend=backend, chunks=chunks)[-1]
        for b in range(2):
            due = mass(request.alone(b), int(said.step.seen[b]))
            for h in range(2):
                assert said.line(b, h)[1] == pytest.approx(due[h], rel=1e-11)


def test_requests_have_images() -> None:
    assert all(request.segment is not None and request.segment.any() for request in requests() if request.prompt > 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_segments_it_names_the_fix(backend: str) -> None:
    with pytest.raises(MissingColumnError, match=r"PostImageMass needs column 'segment'.*segments="):
        watch(PostImageMass(), make_request(), backend=backend)


@pytest.mark.parametrize("arguments", [{"heads": "x"}, {"threshold": 0}, {"threshold": 2.0}, {"threshold": None}])
def test_refusals(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(PolicyError, match=f"{name}="):
        PostImageMass(**arguments)


def test_an_image_beyond_the_prompt() -> None:
    request = with_image(make_request(prompt=12, steps=2), 3, 5)
    agrees_now = watch(PostImageMass(), request)[-1]
    assert agrees_now.line(0, 0)[1] == pytest.approx(mass(request, 14)[0], rel=1e-11)
