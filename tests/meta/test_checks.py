"""A check: a law tried on examples, and the smallest failure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from kit import FEW, ROWS, OfLength, check

import kvpolicy as kv
from kvpolicy.testing import Check, ConformanceError, Law, Place, Request, Table, checks, checks_of
from kvpolicy.testing._law import law
from kvpolicy.testing._outcome import fail

pytestmark = pytest.mark.usefixtures("few")


class TestChecks:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"expected": {"batch_independant": "so"}}, "'batch_independant': there is no such law. Hint: batch_indep"),
            (
                {"expected": {"dominance": "so"}},
                "'dominance': it does not apply to OfLength() (not about a component of",
            ),
            ({"profile": "slow"}, "profile='slow': there are quick, dev, ci, nightly."),
            ({"sizes": {"colour": 3}}, "sizes: 'colour' is no size of an example for OfLength(). There are:"),
            ({"sizes": {"dim": 3}}, "Table(dim=3): dim must be even. Hint: 4."),
            ({"sizes": {"seed": -1}}, "Table(seed=-1): seed must be an integer >= 0."),
            ({"sizes": {"batch": "2"}}, "Table(batch='2'): batch must be an integer >= 1."),
        ],
    )
    def test_unknown_names_are_errors(self, options: Any, said: str) -> None:
        with pytest.raises(kv.PolicyError, match=re.escape(said)):
            checks_of(OfLength(), backend="numpy", **options)

    def test_an_unknown_backend_is_an_error(self) -> None:
        with pytest.raises(kv.BackendUnavailableError, match=r"backend='cupy': there is no such backend"):
            checks_of(OfLength(), backend="cupy")

    def test_a_law_that_needs_more_than_there_is(self) -> None:
        about = checks_of(kv.TopK(), backend="numpy", sizes={"heads": 1})
        assert about["head_equivariant"] == "needs 2 heads, and heads=1"
        assert repr(about["batch_independent"]) == "batch_independent-numpy"

    def test_the_smallest_example_is_shown(self) -> None:
        with pytest.raises(ConformanceError) as caught:
            check(checks.padding_invariant, component := OfLength())(component)
        assert re.search(r"^example = Table\((seed=\d+, )?(now=3|tokens=\d)?\)$", caught.value.script, re.M)

    def test_what_is_expected_to_fail_is_tried_for_longer(self) -> None:
        times: Counter[str] = Counter()

        @law("Scheduler")
        def counts(subject: Any, example: Any) -> None:
            """It is tried."""
            times["now"] += 1

        check(counts)(ROWS)
        assert times.pop("now") == check(counts).examples == FEW
        check(counts, expected="it is so")(ROWS)
        assert 4 * FEW <= times["now"] <= check(counts, expected="it is so").examples == 20 * FEW

    def test_laws_that_are_slow_to_try_get_a_share_of_the_examples(self) -> None:
        @law("Scheduler", "Policy", effort=0.5)
        def slow(subject: Any, example: Any) -> None:
            """It is tried."""

        assert check(slow).examples == FEW / 2
        assert check(slow, kv.h2o(keep=0.5)).examples == FEW / 4  # each is a whole request

    def test_examples_are_the_same_every_time_in_ci(self) -> None:
        seen: list[list[Any]] = [[], []]

        @law("Scheduler")
        def notes(subject: Any, example: Any) -> None:
            """It is tried."""
            seen[-1].append(example)

        for _ in range(2):
            seen.append([])
            check(notes)(ROWS)
        assert seen[-1] == seen[-2] != []

    def test_a_failure_that_does_not_come_again_is_one(self) -> None:
        tried: list[Any] = []

        @law("Scheduler")
        def once(subject: Any, example: Any) -> None:
            """It holds but once."""
            tried.append(example)
            if len(tried) == 5:
                fail(Place(layer=0, head=1), "this time it does not.")

        said = r"layer 0, head 1: sometimes: this time it does not\. The same example does not always do so"
        with pytest.raises(ConformanceError, match=said) as caught:
            check(once)(ROWS)
        assert caught.value.place == Place(layer=0, head=1)
        assert caught.value.detail.startswith("sometimes: this time")

    def test_a_check_is_about_one_component(self) -> None:
        about = checks_of(OfLength(), backend="numpy")["deterministic"]
        assert isinstance(about, Check)
        with pytest.raises(kv.PolicyError, match=r"this check is about OfLength\(\); it was called with FixedRows"):
            about(ROWS)

    def test_a_law_is_not_tried_on_what_it_is_not_about(self) -> None:
        with pytest.raises(kv.PolicyError, match=r"the law does not apply \(not about a component of kind Scheduler\)"):
            checks.dominance(ROWS, Table())
        with pytest.raises(kv.PolicyError, match=r"it is tried on a Table, not a Request\. Hint: Table\(\)\."):
            checks.deterministic(ROWS, Request())

    def test_sizes_are_those_of_the_examples(self) -> None:
        seen: list[Any] = []

        @law("Scheduler", least={"heads": 2})
        def notes(subject: Any, example: Any) -> None:
            """It is tried."""
            seen.append(example)

        check(notes, sizes={"tokens": 5})(ROWS)
        assert {(table.tokens, table.heads >= 2) for table in seen} == {(5, True)}

    def test_a_law_that_needs_layers_gets_them(self) -> None:
        seen: list[int] = []

        @law("Scheduler", least={"layers": 2})
        def notes(subject: Any, example: Any) -> None:
            """It is tried."""
            seen.append(example.layers)

        check(notes)(ROWS)
        assert min(seen) >= 2
        seen.clear()
        check(notes, sizes={"layers": 3})(ROWS)
        assert set(seen) == {3}

    @pytest.mark.parametrize("kind", [Check, Law])
    def test_what_is_public_is_of_public_types(self, kind: Any) -> None:
        assert not [each.name for each in fields(kind) if "Subject" in str(each.type) and not each.name.startswith("_")]
