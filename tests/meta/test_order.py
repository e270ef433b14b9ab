"""One fault, one failure: what rests on a law that fails is not told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from kit import FEW, ROWS, OfLength, check

from kvpolicy.testing import checks_of
from kvpolicy.testing._law import law
from kvpolicy.testing._order import OrderedCheck, in_order

pytestmark = pytest.mark.usefixtures("few")


class TestOrder:
    def ordered(self, component: Any, **expected: str) -> Mapping[str, OrderedCheck]:
        about = in_order(checks_of(component, backend="numpy", expected=expected))
        return {name: check for name, check in about.items() if isinstance(check, OrderedCheck)}

    def test_what_rests_on_what_has_failed_is_not_told(self) -> None:
        told = self.ordered(mine := OfLength())
        assert told["well_formed"].settle(mine) == (None, None)
        error, earlier = told["padding_invariant"].settle(mine)
        assert (error and error.law, earlier) == ("padding_invariant", None)
        error, earlier = told["batch_independent"].settle(mine)
        assert error is not None
        assert (error.law, earlier) == ("padding_invariant", told["padding_invariant"])

    def test_only_a_failure_asks_for_earlier_ones(self) -> None:
        told = self.ordered(mine := OfLength())
        assert told["deterministic"].settle(mine) == (None, None)
        assert told["well_formed"].outcome is None
        assert told["batch_independent"].settle(mine)[1] is told["padding_invariant"]
        assert told["well_formed"].outcome is True

    def test_an_expected_failure_explains_nothing(self) -> None:
        told = self.ordered(mine := OfLength(), padding_invariant="it is so")
        assert told["padding_invariant"] not in told["batch_independent"].before
        error, earlier = told["batch_independent"].settle(mine)
        assert (error and error.law, earlier) == ("batch_independent", None)

    def test_nothing_is_tried_twice(self) -> None:
        calls: list[int] = []

        @law("Scheduler")
        def counts(subject: Any, example: Any) -> None:
            """It is tried."""
            calls.append(1)

        ordered = OrderedCheck(check(counts))
        ordered(ROWS)
        ordered(ROWS)
        assert len(calls) == FEW
