"""Every stock stage under the kit that third parties use."""

from __future__ import annotations

from typing import Any

import pytest
from stock import (
    ALLOCATORS,
    ASSIGNERS,
    HEADS,
    LAYERS,
    MERGERS,
    RECALLERS,
    SCORERS,
    SELECTORS,
    WEIGHERS,
    controller,
    schedulers,
)

import kvpolicy
from kvpolicy.testing import Check, parametrize_with_checks

DIM = 4
STAGES: list[Any] = [
    *schedulers(rows=3, memory="1KB"),
    *SCORERS,
    controller(DIM),
    *ALLOCATORS,
    *SELECTORS,
    *MERGERS,
    *ASSIGNERS,
    *WEIGHERS,
    *RECALLERS,
]

# Laws that stages break on purpose; their docstrings say so.
ON_PURPOSE = {
    "Clusters": {"dominance": "keeps the best row of each run of similar keys, whatever other runs hold"},
    "Clusters()": {
        "monotone_budget": "a row more cuts a run in two, and each half has a best row of its own",
    },
    "Clusters(epsilon=0.3)": {
        "within_quota": "the size is whatever the threshold gives",
        "budget_exact": "the size is whatever the threshold gives",
        "idempotent": "the rows that are left have other neighbours, and new runs",
    },
    "HeadTable": {"head_equivariant": "every head has a share of its own"},
    "Gaussian(sigma=2.0, scale_values=True)": {"merge_convex": "multiplies the merged value by the number of its rows"},
    "Prominence": {"merge_convex": "adds values to what is kept whole"},
    "SimilarityWeighted": {"merge_convex": "weights are similarities: their sum is below 1, and some are negative"},
    "ZeroPerturbation": {"merge_convex": "scales the merged key, so that it is paid what its rows were paid"},
}


@parametrize_with_checks(
    STAGES,
    backends=["numpy", "torch"],
    expected_failures=ON_PURPOSE,
    sizes={"HeadTable": {"layers": LAYERS, "heads": HEADS}, "GRUController": {"dim": DIM}},
)
def test_stage(component: Any, check: Check) -> None:
    check(component)


@pytest.mark.parametrize("module", ["schedulers", "scorers", "allocators", "selectors", "mergers", "recallers"])
def test_every_stock_stage_is_here(module: str) -> None:
    exported = {name for name in getattr(kvpolicy, module).__all__ if isinstance(getattr(kvpolicy, name, None), type)}
    assert exported <= {type(stage).__name__ for stage in STAGES}
