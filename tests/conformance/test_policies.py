"""Every recipe under the kit, and both backends."""

from __future__ import annotations

import inspect
from typing import Any

from kvpolicy import RECIPES, Policy, backend_by_name
from kvpolicy.testing import Check, parametrize_with_checks

# Protection and windows small beside prompts of ten tokens, so that something is left to decide.
SMALL: dict[str, Any] = {"keep": 0.5, "first": 1, "window": 3, "table": ((3, 1), (1, 2)), "distance": 2, "kernel": 3}


def small(name: str) -> Policy:
    """A recipe with these arguments, as far as it takes them."""
    takes = inspect.signature(RECIPES[name]).parameters
    return RECIPES[name](**{argument: value for argument, value in SMALL.items() if argument in takes})


POLICIES = {name: small(name) for name in RECIPES}


@parametrize_with_checks(
    POLICIES,
    backends=["torch"],  # which must agree with numpy: one of the laws
    expected_failures={
        "cam": {"merge_convex": "adds values to what is kept whole"},
        "head_kv": {"head_equivariant": "every head has a share of its own"},
        "keep_kv": {"merge_convex": "scales the merged key, so that it is paid what its rows were paid"},
        "kv_merger": {"dominance": "keeps the best row of each run of similar keys, whatever other runs hold"},
    },
    sizes={"head_kv": {"layers": 2, "heads": 2}},
)
def test_recipe(component: Any, check: Check) -> None:
    check(component)


@parametrize_with_checks([backend_by_name("numpy"), backend_by_name("torch")], backends=["numpy"])
def test_backend(component: Any, check: Check) -> None:
    check(component)
