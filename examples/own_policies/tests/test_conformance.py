"""Our policies keep the laws of kvpolicy's conformance kit.

Its examples have at most ten tokens, so arguments are small here: a window of 64 would see every row of them.
"""

from typing import Any

from kvpolicy.testing import Check, parametrize_with_checks
from own_policies import AddValues, EarlyLayers, LoudValues, NeighbourMean, Staircase, loud_neighbours


@parametrize_with_checks(
    [
        LoudValues(),
        Staircase(keep=0.5, stair=2),
        EarlyLayers(rows=1),
        NeighbourMean(window=4),
        AddValues(window=4),
        loud_neighbours(keep=0.5, stair=2, moved=1),
    ],
    backends=["numpy", "torch"],
    expected_failures={"AddValues": {"merge_convex": "adds values, does not average"}},
)
def test_conforms(component: Any, check: Check) -> None:
    check(component)
