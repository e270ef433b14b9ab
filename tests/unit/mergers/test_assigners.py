"""Assigners by themselves, against loops over rows, on both backends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from driving import drive, make_request
from hypothesis import given
from hypothesis import strategies as st
from scenes import PLACES, Arr, Scene, by_arrival, cosine, leaving, make_scene, scenes

from kvpolicy import FixedRows, Pipeline, PlanError, Policy, PolicyError, Recency, Scored, Selection, Step, TopK
from kvpolicy._plan import Assignment
from kvpolicy.mergers import EMAGate, Fold, Mean, MostSimilar, NearestPosition, NextKept, SameCluster, SimilaritySoftmax


def assigned(assigner: Any, scene: Scene) -> tuple[Assignment, Arr, Arr | None]:
    """The assignment, and its targets and similarities in numpy."""
    made = assigner.assign(scene.scored, scene.selection, scene.asked)
    return made, scene.host(made.into), None if made.similarity is None else scene.host(made.similarity)


def heads_of(scene: Scene) -> list[tuple[int, int]]:
    return list(np.ndindex(*scene.view.shape[:2]))


class TestMostSimilar:
    @given(scenes())
    def test_the_best_there_is(self, scene: Scene) -> None:
        _, into, similarity = assigned(MostSimilar(), scene)
        assert similarity is not None
        for b, h in heads_of(scene):
            keys, kept = scene.view.keys[b, h], np.flatnonzero(scene.keep[b, h])
            gone = leaving(scene, b, h)
            for s in range(scene.view.shape[2]):
                if s not in gone or not len(kept):
                    assert into[b, h, s, 0] == -1
                    continue
                best = max(cosine(keys[s], keys[n]) for n in kept)
                assert into[b, h, s, 0] in kept
                assert similarity[b, h, s, 0] == pytest.approx(best, abs=1e-5)
                assert cosine(keys[s], keys[into[b, h, s, 0]]) == pytest.approx(best, abs=1e-5)

    @given(scenes(keys="axes"))
    def test_ties_go_to_the_earliest(self, scene: Scene) -> None:
        _, into, _ = assigned(MostSimilar(), scene)
        for b, h in heads_of(scene):
            keys = scene.view.keys[b, h]
            kept = [n for n in by_arrival(scene.view, b, h) if scene.keep[b, h, n]]
            for s in leaving(scene, b, h):
                assert into[b, h, s, 0] == max(kept, key=lambda n: cosine(keys[s], keys[n]), default=-1)

    @given(scenes(), st.sampled_from([-0.5, 0.0, 0.31, 2.0]))
    def test_the_threshold_drops(self, scene: Scene, threshold: float) -> None:
        _, every, similarity = assigned(MostSimilar(), scene)
        _, into, _ = assigned(MostSimilar(threshold), scene)
        np.testing.assert_array_equal(into, np.where(np.asarray(similarity) >= threshold, every, -1))

    def test_a_row_at_the_threshold_folds(self) -> None:
        scene = make_scene(keys="axes", quota=4)
        _, every, similarity = assigned(MostSimilar(), scene)
        _, into, _ = assigned(MostSimilar(1.0), scene)
        assert np.any(every >= 0)
        np.testing.assert_array_equal(into >= 0, (every >= 0) & (np.asarray(similarity) == 1))

    def test_clustering_by_key_keeps_the_mean_of_each_cluster(self) -> None:
        scene = make_scene(quota=3, rows=8)
        plan = Fold(MostSimilar(), Mean()).merge(scene.scored, scene.selection, scene.asked)
        out = scene.asked.ops.compact(scene.view, plan, 3)
        for b, h in heads_of(scene):
            keys, kept = scene.view.keys[b, h], np.flatnonzero(scene.keep[b, h])
            for slot, n in enumerate(sorted(kept, key=lambda n: scene.view.positions[b, h, n])):
                members = [
                    s
                    for s in range(8)
                    if s == n or (s not in kept and max(kept, key=lambda a, s=s: cosine(keys[s], keys[a])) == n)  # type: ignore[misc]
                ]
                np.testing.assert_allclose(out.keys[b, h, slot], keys[members].mean(axis=0), atol=1e-12)
                assert out.columns["count"].data[b, h, slot] == len(members)

    @pytest.mark.parametrize("threshold", ["0.5", True, float("nan"), float("inf")])
    def test_it_refuses(self, threshold: Any) -> None:
        with pytest.raises(PolicyError, match="threshold"):
            MostSimilar(threshold)


class TestEMAGate:
    @given(scenes(rows=8), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    def test_three_merges_of_a_request(self, scene: Scene, seed: int, beta: float) -> None:
        batch, heads, _ = scene.view.shape
        gates: dict[tuple[int, int], float] = {}
        registers: dict[str, Any] = {}
        for merge in range(3):
            now = make_scene(
                seed=seed + merge, place=scene.place, batch=batch, heads=heads, rows=8, keys="random", scores="random"
            )
            _, every, similarity = assigned(MostSimilar(), now)
            scored = now.scored
            scored = Scored(replace(scored.view, registers=registers), scored.scores)
            made = EMAGate(MostSimilar(), beta).assign(scored, now.selection, now.asked)
            into, registers = now.host(made.into), dict(made.registers)
            gate = now.host(registers["gate"])
            assert gate.shape == (batch, heads)
            for b, h in heads_of(now):
                goes = np.flatnonzero(every[b, h, :, 0] >= 0)
                alike = np.asarray(similarity)[b, h, goes, 0]
                if len(goes):
                    mean = float(np.mean(alike))
                    before = gates.get((b, h))
                    gates[b, h] = mean if before is None else beta * mean + (1 - beta) * before
                if (b, h) not in gates:
                    assert np.isnan(gate[b, h])
                    assert np.all(into[b, h] == -1)
                    continue
                assert gate[b, h] == pytest.approx(gates[b, h], abs=1e-5)
                for s, value in zip(goes, alike, strict=True):
                    if abs(value - gates[b, h]) > 1e-5:
                        assert into[b, h, s, 0] == (every[b, h, s, 0] if value > gates[b, h] else -1)
                np.testing.assert_array_equal(np.where(into[b, h] >= 0, into[b, h], every[b, h]), every[b, h])

    @pytest.mark.parametrize("place", PLACES, ids=repr)
    @pytest.mark.parametrize("keys", ["equal", "axes"])
    def test_the_most_similar_always_pass_at_first(self, place: Any, keys: str) -> None:
        """A mean of equal numbers, rounded, must not drop them all."""
        scene = make_scene(rows=13, heads=3, dim=1, quota=2, keys=keys, place=place)
        similarity = np.full(scene.view.shape, 0.1)  # three times 0.1 is more than 0.3

        @dataclass(frozen=True)
        class Tenth:
            def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
                found = MostSimilar().assign(scored, selection, step)
                return Assignment(found.into, place.array(similarity, vectors=True)[..., None])

        registers: dict[str, Any] = {}
        for _ in range(3):
            scored = Scored(replace(scene.scored.view, registers=registers), scene.scored.scores)
            made = EMAGate(Tenth()).assign(scored, scene.selection, scene.asked)
            registers = dict(made.registers)
            assert np.all(np.sum(scene.host(made.into) >= 0, axis=(2, 3)) == 11)

    def test_several_targets_are_gated_one_by_one(self) -> None:
        scene = make_scene(batch=1, heads=1, rows=4, quota=2)
        kept = np.flatnonzero(scene.keep[0, 0])
        into = np.where(scene.keep[..., None], -1, kept)
        similarity = np.where(scene.keep[..., None], 0.0, np.array([0.2, 0.8]))

        class Both:
            needs = ("mass",)
            needs_groups = True

            def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
                return Assignment(into, similarity, {"mine": np.ones((1, 1))})

        gate = EMAGate(Both())
        made, gated, _ = assigned(gate, scene)
        np.testing.assert_array_equal(gated[0, 0, ~scene.keep[0, 0]], [[-1, kept[1]]] * 2)
        assert made.registers.keys() == {"mine", "gate"}
        assert made.registers["gate"] == pytest.approx(0.5)
        assert gate.needs == ("mass",)
        assert gate.needs_groups
        assert not EMAGate(MostSimilar()).needs_groups
        assert EMAGate(MostSimilar()).needs == ()

    @pytest.mark.parametrize("backend", ["numpy", "torch"])
    def test_a_request_does_not_inherit_the_gate(self, backend: str) -> None:
        pipeline = Pipeline(
            schedule=FixedRows(5),
            score=Recency(),
            select=TopK(first=2),
            merge=Fold(EMAGate(MostSimilar()), SimilaritySoftmax()),
        )
        policy = Policy(prefill=pipeline, decode=pipeline)
        one, other = (make_request(seed=seed, batch=2, padding=(0, 6)) for seed in (1, 2))
        session = drive(policy, one, backend=backend).session
        session.clear()
        again = drive(policy, other, backend=backend, session=session)
        fresh = drive(policy, other, backend=backend)
        for a, b in zip(again.passes, fresh.passes, strict=True):
            np.testing.assert_array_equal(a.outputs, b.outputs)
        views = [trace.session._layers[0].store.view() for trace in (again, fresh)]
        gates = [np.asarray(view.registers["gate"]) for view in views]
        np.testing.assert_array_equal(*gates)
        assert np.all(np.isfinite(gates[0]))

    def test_each_batch_row_has_its_own(self) -> None:
        """A row too short to merge in the prompt gates as it would alone."""
        pipeline = Pipeline(
            schedule=FixedRows(5),
            score=Recency(),
            select=TopK(first=2),
            merge=Fold(EMAGate(MostSimilar()), SimilaritySoftmax()),
        )
        policy = Policy(prefill=pipeline, decode=pipeline)
        request = make_request(seed=3, batch=3, prompt=9, steps=6, padding=(0, 6, 3))
        together = drive(policy, request).passes[-1]
        for b in range(3):
            alone = drive(policy, request.alone(b)).passes[-1]
            np.testing.assert_allclose(together.outputs[:, b], alone.outputs[:, 0], atol=1e-12)

    def test_it_refuses_what_gives_no_similarity(self) -> None:
        for inner in (NearestPosition(), SameCluster(), NextKept(3)):
            with pytest.raises(PolicyError, match=rf"similarity, and {type(inner).__name__}.*MostSimilar"):
                EMAGate(inner)

        class Silent:
            def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Assignment:
                return NearestPosition().assign(scored, selection, step)

        with pytest.raises(PlanError, match=r"similarity, and .*Silent"):
            assigned(EMAGate(Silent()), make_scene())

    @pytest.mark.parametrize("beta", [-0.1, 1.5, "x", float("nan")])
    def test_it_refuses_beta(self, beta: Any) -> None:
        with pytest.raises(PolicyError, match="beta"):
            EMAGate(MostSimilar(), beta)

    def test_it_refuses_a_class(self) -> None:
        with pytest.raises(PolicyError, match="instance"):
            EMAGate(MostSimilar)  # type: ignore[arg-type]


class TestNextKept:
    @given(scenes(), st.sampled_from([1, 2, 5, 32]))
    def test_the_rows_after(self, scene: Scene, count: int) -> None:
        _, into, _ = assigned(NextKept(count), scene)
        assert into.shape == (*scene.view.shape, count)
        for b, h in heads_of(scene):
            order, gone = by_arrival(scene.view, b, h), leaving(scene, b, h)
            for s in range(scene.view.shape[2]):
                after = [n for n in order[order.index(s) :] if scene.keep[b, h, n]] if s in gone else []
                expected = (after + [-1] * count)[:count]
                assert into[b, h, s].tolist() == expected

    @pytest.mark.parametrize("count", [0, -1, 1.5, True])
    def test_it_refuses(self, count: Any) -> None:
        with pytest.raises(PolicyError, match="count"):
            NextKept(count)


class TestSameCluster:
    @given(scenes())
    def test_the_pivot(self, scene: Scene) -> None:
        rng = np.random.default_rng(0)
        groups = np.full(scene.view.shape, -1)
        for b, h in heads_of(scene):
            kept = np.flatnonzero(scene.keep[b, h])
            for s in by_arrival(scene.view, b, h):
                groups[b, h, s] = s if s in kept else rng.choice([-1, *kept])
        chosen = Selection(scene.selection.keep, scene.place.array(groups))
        made = SameCluster().assign(scene.scored, chosen, scene.asked)
        assert made.similarity is None
        gone = scene.view.valid & ~scene.keep
        np.testing.assert_array_equal(scene.host(made.into)[..., 0], np.where(gone, groups, -1))

    def test_without_groups(self) -> None:
        with pytest.raises(PlanError, match=r"groups.*Clusters"):
            assigned(SameCluster(), make_scene())

    def test_a_pipeline_without_clusters(self) -> None:
        with pytest.raises(PolicyError, match="Clusters"):
            Pipeline(schedule=FixedRows(3), score=Recency(), merge=Fold(SameCluster(), Mean()))


class TestNearestPosition:
    @given(scenes(), st.integers(0, 2), st.integers(0, 2))
    def test_the_nearest_of_those_not_spared(self, scene: Scene, first: int, last: int) -> None:
        _, into, _ = assigned(NearestPosition(first, last), scene)
        for b, h in heads_of(scene):
            order = by_arrival(scene.view, b, h)
            position, gone = scene.view.positions[b, h], leaving(scene, b, h)
            open_to = [n for n in order[first : len(order) - last] if scene.keep[b, h, n]]
            for s in range(scene.view.shape[2]):
                target = (
                    min(open_to, key=lambda n: abs(int(position[n] - position[s])), default=-1) if s in gone else -1
                )
                assert into[b, h, s, 0] == target


@dataclass(frozen=True)
class Told:
    """Both halves of a fold, answering what they are told to."""

    answer: Any
    needs_similarity: bool = False

    def __repr__(self) -> str:
        return "Told()"

    def assign(self, scored: Scored, selection: Selection, step: Step, /) -> Any:
        return self.answer

    def weigh(self, scored: Scored, selection: Selection, assignment: Assignment, step: Step, /) -> Any:
        return self.answer


class TestFold:
    """A half that answers something else is named, with the type of what it gave."""

    @pytest.mark.parametrize("answer", [None, np.zeros((1, 1, 9, 1), np.int64), Selection(np.ones((1, 1, 9), bool))])
    def test_an_assigner(self, answer: Any) -> None:
        scene = make_scene()
        with pytest.raises(PlanError, match=rf"Told\(\)\.assign\(\) returned a {type(answer).__name__}, not an"):
            Fold(Told(answer), Mean()).merge(scene.scored, scene.selection, scene.asked)

    @pytest.mark.parametrize("answer", [None, (1.0, 1.0), Assignment(np.zeros((1, 1, 9, 1), np.int64))])
    def test_a_weigher(self, answer: Any) -> None:
        scene = make_scene()
        with pytest.raises(PlanError, match=rf"Told\(\)\.weigh\(\) returned a {type(answer).__name__}, not Wei"):
            Fold(NearestPosition(), Told(answer)).merge(scene.scored, scene.selection, scene.asked)

    def test_an_assigner_that_leaves_out_the_similarity_is_told_before_the_weigher_runs(self) -> None:
        scene = make_scene()
        silent = Told(Assignment(np.full((*scene.view.shape, 1), -1)))
        with pytest.raises(PlanError, match=r"Told\(\) weighs by similarity, and Told\(\) gave none"):
            Fold(silent, Told(None, needs_similarity=True)).merge(scene.scored, scene.selection, scene.asked)
