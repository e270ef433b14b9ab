"""Two outcomes compared, and what is told of a law that is broken."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from kit import OfLength, check

import kvpolicy as kv
from kvpolicy.testing import ConformanceError, Place, Request, Table, checks
from kvpolicy.testing._outcome import BrokenLawError, compare, describe

pytestmark = pytest.mark.usefixtures("few")


class Scorer(kv.ImportanceScorer):
    """A scorer of a user's own."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class TestOutcomes:
    def test_places_in_words(self) -> None:
        assert describe(Place(2, 0, 1, 0, 3)) == "pass 2, layer 0, batch row 1, head 0, token 3"
        assert describe(Place(batch_row=1)) == "batch row 1"
        assert describe(Place()) == ""

    @pytest.mark.parametrize(
        ("got", "due", "said"),
        [
            ({0: {"a": 1.0}}, {}, "layer 0: there is a 1; in that there is nothing."),
            ({}, {0: {"a": 1.0}}, "layer 0: there is nothing; in that there is a 1."),
            ({0: {"a": 1.0}}, {0: {"a": 2.0}}, "layer 0: a is 1; in that it is 2."),
            ({0: {"a": 1.0}}, {0: {"b": 1.0}}, "layer 0: b is missing; in that it is 1."),
            ({0: {"a": [1.0, 2.0]}}, {0: {"a": [1.0]}}, "layer 0: a is [1, 2]; in that it is [1]."),
            ({0: {"a": np.nan}}, {0: {"a": 1.0}}, "layer 0: a is nan; in that it is 1."),
            ({0: {"a": 1.0}, 1: {"a": 1}}, {0: {"a": 1.0}, 1: {"a": 3}}, "layer 1: a is 1; in that it is 3."),
        ],
    )
    def test_the_first_difference_is_told(self, got: Any, due: Any, said: str) -> None:
        mine, yours = ({Place(layer=n): record for n, record in side.items()} for side in (got, due))
        with pytest.raises(BrokenLawError, match=re.escape(said)) as caught:
            compare(mine, yours, what="that")
        assert caught.value.place.layer == int(said[6])

    def test_numbers_may_be_apart_as_far_as_is_said(self) -> None:
        mine, yours = {Place(): {"a": [1.0, np.inf]}}, {Place(): {"a": [1.0 + 1e-7, np.inf]}}
        compare(mine, yours, what="that", tolerance=1e-6)
        with pytest.raises(BrokenLawError):
            compare(mine, yours, what="that")

    def test_what_is_told_of_a_broken_law(self) -> None:
        table = Table(batch=2, padding=(0, 1))
        with pytest.raises(ConformanceError) as caught:
            checks.batch_independent(OfLength(), Table(tokens=4, batch=2, padding=(0, 2)), backend="numpy")
        error = caught.value
        assert (error.law, error.place) == ("batch_independent", Place(batch_row=1))
        assert error.detail == "budget is 2; in the same batch row alone it is 1."
        assert str(error).startswith("OfLength() breaks batch_independent: f(x)[b] = f(x[b])")
        assert "  batch row 1: budget is 2" in str(error)
        assert "\n    example = Table(batch=2, tokens=4, padding=(0, 2))\n" in str(error)
        assert checks.batch_independent(kv.KeepRatio(0.5), table) is None

    def test_an_error_of_the_component_breaks_the_law(self) -> None:
        class Broken(OfLength):
            def budget(self, step: Any) -> int:
                raise ZeroDivisionError("no rows")

        line = Broken.budget.__code__.co_firstlineno + 1
        said = f"raised ZeroDivisionError: no rows\n  at {__file__}:{line}, in budget"
        with pytest.raises(ConformanceError, match=re.escape(said)) as caught:
            checks.padding_invariant(Broken(), Table())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_what_a_library_raises_is_told_with_the_users_line(self) -> None:
        class Lost(OfLength):
            def budget(self, step: Any) -> int:
                return json.loads("")["rows"]

        with pytest.raises(
            ConformanceError, match=r"raised JSONDecodeError: .*\n  at .*test_outcomes\.py:\d+, in budget"
        ):
            checks.padding_invariant(Lost(), Table())

    def test_what_no_line_of_the_user_raises_has_none(self) -> None:
        class Flat(Scorer):
            def score(self, view: kv.CacheView, step: kv.Step) -> Any:
                return view.values[..., 0, 0]

        with pytest.raises(ConformanceError) as caught:
            check(checks.well_formed, component := Flat())(component)
        # of sizes that differ, so that it can be seen which axis is missing
        assert caught.value.detail == (
            "raised PlanError: scores of Flat at layer 0: got shape [2, 3]; "
            "needs a ndarray [batch, heads, rows] = [2, 3, 5]."
        )

    def test_a_dtype_that_is_not_floating(self) -> None:
        class Rounded(Scorer):
            def score(self, view: kv.CacheView, step: kv.Step) -> Any:
                return view.positions

        said = "have dtype int64; they must be floating. Hint: view.xp.astype(scores, view.xp.float32)."
        with pytest.raises(ConformanceError, match=re.escape(said)):
            checks.well_formed(Rounded(), Table(), backend="numpy")

    def test_a_score_that_is_nan(self) -> None:
        class OverItself(Scorer):
            def score(self, view: kv.CacheView, step: kv.Step) -> Any:
                length = view.xp.linalg.vector_norm(view.values, axis=-1)
                return view.xp.where(length > 0, length, view.xp.nan)

        said = r"score is NaN\. Hint: -inf marks a row as worthless, NaN means nothing\.$"
        with pytest.raises(ConformanceError, match=re.compile(said, re.M)):
            checks.finite(OverItself(), Table(tokens=8, vectors="zeros"), backend="numpy")

    def test_a_row_that_chunks_lose(self) -> None:
        class Latest(Scorer):
            def score(self, view: kv.CacheView, step: kv.Step) -> Any:
                return step.ops.attention_mass(view, step.latest(8))

        said = (
            "token 2: it was dropped when the prompt came in chunks of 1, and kept when it came whole. Hint: step.quer"
        )
        with pytest.raises(ConformanceError, match=re.escape(said)):
            checks.chunk_invariant(Latest(), Request(prompt=4, steps=0), backend="numpy")
