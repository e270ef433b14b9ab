"""Stages that cannot work together are refused when they are put together, with both names and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from custom_stages import Loudness

from kvpolicy import Drop, FixedRows, Fold, Mean, NearestPosition, Pipeline, Policy, PolicyError, Recency, TopK


@dataclass(frozen=True)
class Observing:
    """A scorer that says which columns it observes, if told to."""

    columns: tuple[str, ...] = ("mass", "asked")

    def score(self, view: Any, step: Any) -> Any: ...

    def observe(self, view: Any, step: Any) -> Any: ...


class Silent:
    """A scorer that observes and does not say what."""

    def score(self, view: Any, step: Any) -> Any: ...

    def observe(self, view: Any, step: Any) -> Any: ...

    def __repr__(self) -> str:
        return "Silent()"


@dataclass(frozen=True)
class Anything:
    """A stage of every kind but a scorer, with needs."""

    needs: tuple[str, ...] = ()
    needs_groups: bool = False
    needs_count_bias: bool = False
    gives_groups: bool = False
    whole_model: bool = True

    def allocate(self, budget: Any, layers: Any, step: Any) -> Any: ...

    def select(self, scored: Any, quota: Any, step: Any) -> Any: ...

    def merge(self, scored: Any, selection: Any, step: Any) -> Any: ...

    def recall(self, archive: Any, step: Any) -> Any: ...

    def assign(self, scored: Any, selection: Any, step: Any) -> Any: ...

    def weigh(self, scored: Any, selection: Any, assignment: Any, step: Any) -> Any: ...


def pipeline(**stages: Any) -> Pipeline:
    return Pipeline(**{"schedule": FixedRows(4), "score": Observing(), **stages})


def refused(make: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        make()
    return str(caught.value)


KINDS = ["allocate", "select", "merge", "recall"]


class TestColumns:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_column_that_the_scorer_does_not_observe(self, kind: str) -> None:
        stage = Anything(needs=("asked", "strong"))
        message = refused(lambda: pipeline(**{kind: stage}))
        assert message == (
            f"Pipeline: {stage!r} needs the column 'strong', which {Observing()!r} does not observe; it observes: "
            f"mass, asked."
        )

    @pytest.mark.parametrize("score", [Recency(), Loudness()], ids=repr)
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_scorer_that_observes_nothing(self, kind: str, score: Any) -> None:
        message = refused(lambda: pipeline(score=score, **{kind: Anything(needs=("mass",))}))
        assert "Anything(" in message
        assert f"{score!r} does not observe; it observes: none." in message

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("needs", [(), ("mass",), ("asked", "mass")])
    def test_columns_that_are_there(self, kind: str, needs: tuple[str, ...]) -> None:
        pipeline(**{kind: Anything(needs=needs)})

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_callers_scorer_that_does_not_say_is_trusted(self, kind: str) -> None:
        pipeline(score=Silent(), **{kind: Anything(needs=("whatever",))})

    @pytest.mark.parametrize("half", ["assign", "weigh"])
    def test_either_half_of_a_fold(self, half: str) -> None:
        halves: dict[str, Any] = {"assign": NearestPosition(), "weigh": Mean(), half: Anything(needs=("strong",))}
        fold = Fold(**halves)
        message = refused(lambda: pipeline(merge=fold))
        assert repr(fold) in message
        assert "'strong'" in message


class TestGroups:
    @pytest.mark.parametrize(
        "merge", [Anything(needs_groups=True), Fold(Anything(needs_groups=True), Mean())], ids=repr
    )
    def test_a_merger_of_clusters_needs_a_selector_that_makes_them(self, merge: Any) -> None:
        for select in (TopK(first=1), Anything()):
            message = refused(lambda select=select: pipeline(merge=merge, select=select))
            assert f"{merge!r} folds clusters, and {select!r} makes none" in message
            assert "Clusters()" in message
        pipeline(merge=merge, select=Anything(gives_groups=True))

    def test_a_selector_of_clusters_needs_no_such_merger(self) -> None:
        for merge in (Drop(), Fold(NearestPosition(), Mean())):
            pipeline(merge=merge, select=Anything(gives_groups=True))


class TestCounts:
    @pytest.mark.parametrize(
        "merge", [Anything(needs_count_bias=True), Fold(NearestPosition(), Anything(needs_count_bias=True))], ids=repr
    )
    @pytest.mark.parametrize("phase", ["prefill", "decode"])
    def test_a_merger_whose_keys_rely_on_counts(self, merge: Any, phase: str) -> None:
        stage = pipeline(merge=merge)  # a pipeline cannot know yet
        message = refused(lambda: Policy(**{phase: stage}))
        assert message.startswith(f"Policy({phase}=...): {merge!r} ")
        assert "count_bias=True" in message
        Policy(**{phase: stage}, count_bias=True)

    def test_others_may_do_as_they_like(self) -> None:
        for bias in (False, True):
            Policy(prefill=pipeline(merge=Fold(NearestPosition(), Mean())), count_bias=bias)
