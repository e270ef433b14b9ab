"""Every recipe under the kit, and both backends."""

from __future__ import annotations

from typing import Any

from stock import HEADS, LAYERS, POLICIES

from kvpolicy import backend_by_name
from kvpolicy.testing import Check, parametrize_with_checks


@parametrize_with_checks(
    POLICIES,
    backends=["torch"],  # which must agree with numpy: one of the laws
    expected_failures={
        "cam": {"merge_convex": "adds values to what is kept whole"},
        "head_kv": {"head_equivariant": "every head has a share of its own"},
        "keep_kv": {"merge_convex": "scales the merged key, so that it is paid what its rows were paid"},
        "kv_merger": {"dominance": "keeps the best row of each run of similar keys, whatever other runs hold"},
    },
    sizes={"head_kv": {"layers": LAYERS, "heads": HEADS}},
)
def test_recipe(component: Any, check: Check) -> None:
    check(component)


@parametrize_with_checks([backend_by_name("numpy"), backend_by_name("torch")], backends=["numpy"])
def test_backend(component: Any, check: Check) -> None:
    check(component)
