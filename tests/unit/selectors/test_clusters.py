"""Clusters of neighbours, against loops over rows, on both backends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from driving import drive, make_request
from hypothesis import given
from hypothesis import strategies as st
from scenes import PLACES, Arr, LargestTensor, Place, Scene, by_arrival, cosine, make_scene, scenes

from kvpolicy import AttentionMass, FixedRows, Pipeline, Policy, PolicyError
from kvpolicy.mergers import Fold, Gaussian, SameCluster
from kvpolicy.selectors import Clusters, clusters

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])


def selected(selector: Clusters, scene: Scene, *, on_device: bool = False) -> tuple[Arr, Arr]:
    """Rows that stay, and groups, in numpy."""
    quota = scene.place.array(scene.quota) if on_device else scene.quota
    made = selector.select(scene.scored, quota, scene.asked)
    assert str(made.groups.dtype).removeprefix("torch.") == "int64"
    return scene.host(made.keep), scene.host(made.groups)


def by_hand(selector: Clusters, scene: Scene, b: int, h: int) -> list[list[int]]:
    """The clusters of a head, each in order of arrival."""
    order, quota = by_arrival(scene.view, b, h), int(scene.quota[b, h])
    keys, scores = scene.view.keys[b, h], scene.scores[b, h]
    if len(order) <= quota:
        return [[n] for n in order]
    late = min(math.floor(selector.recent * quota), max(quota - 1, 0))
    best = max(0, min(math.floor(selector.top * quota), (quota - late - 1) // 2))
    cut = len(order) - late
    ranked = sorted(range(cut), key=lambda i: (scores[order[i]], i), reverse=True)
    alone = {*range(cut, len(order)), *ranked[:best]}
    similar = {
        i: cosine(keys[order[i]], keys[order[i + 1]])
        for i in range(len(order) - 1)
        if i not in alone and i + 1 not in alone
    }
    if selector.epsilon is None:
        links = set(sorted(similar, key=lambda i: (similar[i], i), reverse=True)[: len(order) - quota])
    else:
        links = {i for i, value in similar.items() if value > selector.epsilon}
    found: list[list[int]] = []
    for i, n in enumerate(order):
        if i - 1 in links:
            found[-1].append(n)
        else:
            found.append([n])
    return found


@given(scenes(dim=4), st.sampled_from([None, None, 0.75, 0.0, -2.0]), SHARES, SHARES, st.booleans())
def test_it_is_what_the_loops_say(
    scene: Scene, epsilon: float | None, recent: float, top: float, on_device: bool
) -> None:
    selector = Clusters(epsilon, recent, top)
    keep, groups = selected(selector, scene, on_device=on_device)
    np.testing.assert_array_equal(groups[~scene.view.valid], -1)
    assert not np.any(keep & ~scene.view.valid)
    for b, h in np.ndindex(*scene.view.shape[:2]):
        order = by_arrival(scene.view, b, h)
        if scene.quota[b, h] == 0:
            assert not np.any(keep[b, h])
            np.testing.assert_array_equal(groups[b, h], -1)
            continue
        for members in by_hand(selector, scene, b, h):
            pivot = max(members, key=lambda n: (scene.scores[b, h, n], order.index(n)))
            assert set(groups[b, h, members]) == {pivot}
            assert [n for n in members if keep[b, h, n]] == [pivot]


@pytest.mark.parametrize("place", PLACES, ids=repr)
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_a_similarity_of_epsilon_does_not_link(place: Place, epsilon: float) -> None:
    scene = make_scene(rows=20, quota=4, keys="axes", dim=2, place=place)
    keep, groups = selected(Clusters(epsilon, recent=0, top=0), scene)
    linked = 0
    for b, h in np.ndindex(*scene.view.shape[:2]):
        found = by_hand(Clusters(epsilon, recent=0, top=0), scene, b, h)
        assert sorted(np.flatnonzero(keep[b, h])) == sorted({int(n) for n in groups[b, h]})
        assert len(found) == keep[b, h].sum()
        linked += 20 - len(found)
    assert (linked > 0) == (epsilon < 1)


@given(scenes(), SHARES, SHARES)
def test_the_quota_is_met_exactly(scene: Scene, recent: float, top: float) -> None:
    held = scene.view.valid.sum(axis=-1)
    for quota in range(1, scene.view.shape[2] + 2):
        now = replace(scene, quota=np.full_like(scene.quota, quota))
        keep, _ = selected(Clusters(recent=recent, top=top), now)
        np.testing.assert_array_equal(keep.sum(axis=-1), np.minimum(held, quota))


@given(scenes(), st.sampled_from([None, 0.5]), SHARES, SHARES)
def test_clusters_are_runs_and_their_pivot_is_the_best(
    scene: Scene, epsilon: float | None, recent: float, top: float
) -> None:
    keep, groups = selected(Clusters(epsilon, recent, top), scene)
    for b, h in np.ndindex(*scene.view.shape[:2]):
        order = by_arrival(scene.view, b, h)
        for pivot in np.flatnonzero(keep[b, h]):
            places = [i for i, n in enumerate(order) if groups[b, h, n] == pivot]
            assert places == list(range(places[0], places[-1] + 1))
            assert order.index(int(pivot)) in places
            scores = scene.scores[b, h, [order[i] for i in places]]
            assert scene.scores[b, h, pivot] == scores.max()
            assert order[places[int(np.flatnonzero(scores == scores.max())[-1])]] == pivot


@pytest.mark.parametrize("place", PLACES, ids=repr)
def test_recent_and_top_rows_stay_alone(place: Place) -> None:
    scene = make_scene(rows=20, quota=8, place=place, dim=3)
    keep, groups = selected(Clusters(), scene)
    for b, h in np.ndindex(*scene.view.shape[:2]):
        order = by_arrival(scene.view, b, h)
        best = sorted(order[:-2], key=lambda n: scene.scores[b, h, n])[-2:]
        for n in (*order[-2:], *best):
            assert keep[b, h, n]
            assert np.flatnonzero(groups[b, h] == n).tolist() == [n]


@pytest.mark.parametrize("place", PLACES, ids=repr)
def test_it_is_the_same_in_pieces(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (1, 2, 4, 5, 8, 9, 12):
        scene = make_scene(rows=rows, quota=max(1, rows // 3), place=place)
        whole = selected(Clusters(), scene)
        with monkeypatch.context() as patch:
            patch.setattr(clusters, "_CHUNK", 4)
            pieces = selected(Clusters(), scene)
        for a, b in zip(whole, pieces, strict=True):
            np.testing.assert_array_equal(a, b)


def test_memory_is_linear_in_the_rows() -> None:
    scene = make_scene(batch=1, heads=1, rows=4000, quota=800, dim=8, place=Place("torch", "float32"))
    scored, asked = scene.scored, scene.asked
    with LargestTensor() as largest:
        made = Clusters().select(scored, scene.quota, asked)
        plan = Fold(SameCluster(), Gaussian()).merge(scored, made, asked)
    assert int(torch.sum(made.keep)) == 800
    assert int(torch.sum(plan.into >= 0)) == 3200
    assert largest.elements <= scene.view.keys.size


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("epsilon", [None, 0.6])
def test_a_padded_batch_is_its_rows_alone(backend: str, epsilon: float | None) -> None:
    """A whole policy: prompt clusters with Gaussian weights, and counts that add up."""
    pipeline = Pipeline(
        schedule=FixedRows(6),
        score=AttentionMass(),
        select=Clusters(epsilon),
        merge=Fold(SameCluster(), Gaussian()),
    )
    policy = Policy(prefill=pipeline, count_bias=True)
    request = make_request(seed=5, layers=2, batch=3, groups=2, prompt=14, steps=3, padding=(0, 5, 9))
    trace = drive(policy, request, backend=backend)
    for b in range(3):
        alone = drive(policy, request.alone(b), backend=backend)
        np.testing.assert_allclose(trace.passes[-1].outputs[:, b], alone.passes[-1].outputs[:, 0], atol=1e-10)
        for layer in trace.passes[0].tables:
            for table in layer[b]:
                assert table.columns["count"].sum() == request.prompt - request.left[b]
                if epsilon is None:
                    assert len(table.positions) == min(6, request.prompt - request.left[b])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"epsilon": "x"}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"recent": 1.5}, "recent"),
        ({"recent": -0.1}, "recent"),
        ({"top": 2}, "top"),
        ({"top": True}, "top"),
    ],
)
def test_it_refuses(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Clusters(**arguments)


def test_it_prints_as_its_constructor() -> None:
    assert repr(Clusters()) == "Clusters()"
    assert repr(Clusters(0.75, top=0.5)) == "Clusters(epsilon=0.75, top=0.5)"
