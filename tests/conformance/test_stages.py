"""Every stock stage under the kit that third parties use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvpolicy
from kvpolicy import (
    AdaptiveHeads,
    AttentionMass,
    BySparsity,
    ByStrengthAndSkew,
    ByVariance,
    Clusters,
    ColumnScore,
    Drop,
    EliteMass,
    EMAGate,
    Every,
    ExpectedAttention,
    FixedPoint,
    FixedRows,
    Fold,
    Gaussian,
    GRUController,
    HeadTable,
    KeepRatio,
    KeyDifference,
    KeyNorm,
    LikePrompt,
    Mean,
    MemoryBudget,
    MostSimilar,
    NearestPosition,
    Nested,
    NextKept,
    Noise,
    Pivotal,
    Pooled,
    PostImageMass,
    Prominence,
    Pyramid,
    Recency,
    SameCluster,
    Shared,
    SimilaritySoftmax,
    SimilarityWeighted,
    TopK,
    TopRecall,
    Uniform,
    WindowMass,
    ZeroPerturbation,
)
from kvpolicy.testing import Check, parametrize_with_checks


def controller() -> GRUController:
    """A small one with random weights."""
    rng = np.random.default_rng(0)
    dim, size = 4, 2
    shapes = {
        "read": (dim, 3 * size),
        "read_bias": (3 * size,),
        "state": (size, 3 * size),
        "state_bias": (size,),
        "ask": (dim, size),
        "ask_bias": (size,),
        "age": (1,),
    }
    return GRUController.from_arrays({name: rng.standard_normal(shape) / 2 for name, shape in shapes.items()})


STAGES: list[Any] = [
    # schedulers
    KeepRatio(0.5),
    FixedRows(3),
    MemoryBudget("1KB"),
    Every(2, FixedRows(3)),
    # scorers
    AttentionMass(),
    AttentionMass(heads="mean"),
    AttentionMass(reduce="mean"),
    AttentionMass(reduce="moving"),
    WindowMass(window=3),
    WindowMass(window=1, heads="mean", keep_window=False),
    Pooled(WindowMass(window=3), kernel=3),
    Pooled(AttentionMass(), kernel=3, mode="max"),
    PostImageMass(),
    EliteMass(window=4),
    ExpectedAttention(window=4, future=4),
    KeyNorm(),
    KeyDifference(),
    Noise(seed=1),
    ColumnScore("segment"),
    Recency(),
    FixedPoint(distance=2),
    Shared(AttentionMass()),
    controller(),
    # allocators
    Uniform(),
    Pyramid(beta=4.0),
    ByVariance(),
    BySparsity(),
    ByStrengthAndSkew(),
    AdaptiveHeads(),
    HeadTable(((3, 1), (1, 1), (1, 2))),
    LikePrompt(),
    Nested(layers=Pyramid(beta=4.0), heads=AdaptiveHeads()),
    # selectors
    TopK(),
    TopK(first=1, last=1, recent=0.25),
    TopK(text=True),
    Clusters(),
    Clusters(epsilon=0.3),
    # mergers and their halves
    Drop(),
    Fold(NearestPosition(first=1, last=1), Mean(), keys=False),
    Fold(EMAGate(MostSimilar()), SimilaritySoftmax()),
    NearestPosition(),
    MostSimilar(),
    MostSimilar(threshold=0.2),
    NextKept(count=2),
    EMAGate(MostSimilar()),
    SameCluster(),
    Mean(),
    Pivotal(),
    Gaussian(),
    Gaussian(sigma=2.0, scale_values=True),
    Prominence(),
    SimilarityWeighted(),
    SimilaritySoftmax(),
    ZeroPerturbation(),
    # recallers
    TopRecall(AttentionMass(), rows=2),
    TopRecall(KeyNorm(), rows=1),
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
    sizes={"HeadTable": {"layers": 3, "heads": 2}, "GRUController": {"dim": 4}},
)
def test_stage(component: Any, check: Check) -> None:
    check(component)


@pytest.mark.parametrize("module", ["schedulers", "scorers", "allocators", "selectors", "mergers", "recallers"])
def test_every_stock_stage_is_here(module: str) -> None:
    exported = {name for name in getattr(kvpolicy, module).__all__ if isinstance(getattr(kvpolicy, name, None), type)}
    assert exported <= {type(stage).__name__ for stage in STAGES}
