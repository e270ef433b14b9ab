"""Two outcomes compared, and what is told of a law that is broken."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from kit import OfLength

import kvpolicy as kv
from kvpolicy.testing import ConformanceError, Place, Table, checks
from kvpolicy.testing._outcome import BrokenLawError, compare, describe

pytestmark = pytest.mark.usefixtures("few")


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

        with pytest.raises(ConformanceError, match="raised ZeroDivisionError: no rows") as caught:
            checks.padding_invariant(Broken(), Table())
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
