"""Every stock stage and recipe, small: what is held to laws, composed and written to files."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from kvpolicy import (
    RECIPES,
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
    Policy,
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

__all__ = [
    "ALLOCATORS",
    "ASSIGNERS",
    "FOLDS",
    "HEADS",
    "LAYERS",
    "MERGERS",
    "POLICIES",
    "RECALLERS",
    "SCORERS",
    "SELECTORS",
    "WEIGHERS",
    "controller",
    "parts",
    "schedulers",
]

TABLE = ((3, 1), (1, 1), (1, 2))  # of heads, for `HeadTable` and the recipe that takes one
LAYERS, HEADS = len(TABLE), len(TABLE[0])  # of the models that these are for


def schedulers(rows: int, memory: str) -> list[Any]:
    """Budgets: how many rows are few depends on the prompts, and their bytes on the model."""
    return [
        KeepRatio(0.5),
        FixedRows(rows),
        MemoryBudget(memory),
        Every(2, FixedRows(rows)),
        Every(3, KeepRatio(0.4)),
    ]


SCORERS: list[Any] = [
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
]


def controller(dim: int, size: int = 2) -> GRUController:
    """The one scorer that is made for keys of a certain width; its weights are random."""
    rng = np.random.default_rng(0)
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


ALLOCATORS: list[Any] = [
    Uniform(),
    Pyramid(beta=4.0),
    ByVariance(),
    BySparsity(),
    ByStrengthAndSkew(),
    AdaptiveHeads(),
    HeadTable(TABLE),
    LikePrompt(),
    Nested(layers=Pyramid(beta=4.0), heads=AdaptiveHeads()),
    Nested(layers=BySparsity(), heads=AdaptiveHeads()),
]

SELECTORS: list[Any] = [
    TopK(),
    TopK(first=1, last=1, recent=0.25),
    TopK(text=True),
    Clusters(),
    Clusters(epsilon=0.3),
]

ASSIGNERS: list[Any] = [
    NearestPosition(),
    MostSimilar(),
    MostSimilar(threshold=0.2),
    NextKept(count=2),
    EMAGate(MostSimilar()),
    SameCluster(),
]

WEIGHERS: list[Any] = [
    Mean(),
    Pivotal(),
    Gaussian(),
    Gaussian(sigma=2.0, scale_values=True),
    Prominence(),
    SimilarityWeighted(),
    SimilaritySoftmax(),
    ZeroPerturbation(),
]

MERGERS: list[Any] = [
    Drop(),
    Fold(NearestPosition(first=1, last=1), Mean(), keys=False),
    Fold(EMAGate(MostSimilar()), SimilaritySoftmax()),
]

FOLDS: list[Any] = [  # the other halves in pairs: held to no laws, as each half is by itself
    Fold(NearestPosition(), Mean()),
    Fold(MostSimilar(), Mean()),
    Fold(MostSimilar(), Pivotal()),
    Fold(MostSimilar(), SimilarityWeighted()),
    Fold(SameCluster(), Gaussian()),
    Fold(SameCluster(), Gaussian(sigma=2.0, scale_values=True)),
    Fold(NextKept(count=2), Prominence(), keys=False),
    Fold(MostSimilar(threshold=0.2), ZeroPerturbation()),
]

RECALLERS: list[Any] = [TopRecall(AttentionMass(), rows=2), TopRecall(KeyNorm(), rows=1)]

# Protection and windows small beside prompts of ten tokens, so that something is left to decide.
SMALL: dict[str, Any] = {"keep": 0.5, "first": 1, "window": 3, "table": TABLE, "distance": 2, "kernel": 3}


def small(name: str) -> Policy:
    """A recipe with these arguments, as far as it takes them."""
    takes = inspect.signature(RECIPES[name]).parameters
    return RECIPES[name](**{argument: value for argument, value in SMALL.items() if argument in takes})


POLICIES: dict[str, Policy] = {name: small(name) for name in RECIPES}


def parts(value: Any) -> Iterator[Any]:
    """A stage or policy and all that it is made of."""
    if isinstance(value, tuple):
        for item in value:
            yield from parts(item)
    elif is_dataclass(value):
        yield value
        for f in fields(value):
            yield from parts(getattr(value, f.name))
