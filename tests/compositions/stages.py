"""Which pairs of stock stages cannot work together, and a set of compositions that covers all other pairs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from stock import ALLOCATORS, FOLDS, MERGERS, SCORERS, SELECTORS, schedulers

from kvpolicy import BySparsity, Clusters, Pipeline, Policy, PostImageMass, SameCluster, TopRecall, ZeroPerturbation

__all__ = ["FACTORS", "cover", "policy_of", "why_refused"]

Choice = Mapping[str, Any]

FACTORS: dict[str, list[Any]] = {
    "score": SCORERS,
    "allocate": ALLOCATORS,
    "select": SELECTORS,
    "merge": [*MERGERS, *FOLDS],
    "recall": [False, True],
    "schedule": schedulers(rows=9, memory="8KB"),
    "phase": ["prefill", "decode", "both"],
    "attend": ["plain", "count_bias", "slots"],
}


def policy_of(choice: Choice) -> Policy:
    """Build it; raises what the library raises."""
    pipeline = Pipeline(
        schedule=choice["schedule"],
        score=choice["score"],
        allocate=choice["allocate"],
        select=choice["select"],
        merge=choice["merge"],
        recall=TopRecall(choice["score"], rows=2) if choice["recall"] else None,
    )
    return Policy(
        prefill=pipeline if choice["phase"] != "decode" else None,
        decode=pipeline if choice["phase"] != "prefill" else None,
        count_bias=choice["attend"] == "count_bias",
        positions="slots" if choice["attend"] == "slots" else "original",
    )


def why_refused(choice: Choice) -> str | None:
    """The pairs that the documentation lists, and no others."""
    allocate, score, merge = choice["allocate"], choice["score"], choice["merge"]
    assign, weigh = getattr(merge, "assign", None), getattr(merge, "weigh", None)
    layers = getattr(allocate, "layers", allocate)
    if isinstance(layers, BySparsity) and not isinstance(score, PostImageMass):
        return "needs the column"
    if isinstance(assign, SameCluster) and not isinstance(choice["select"], Clusters):
        return "folds clusters"
    if isinstance(weigh, ZeroPerturbation) and choice["attend"] != "count_bias":
        return "count_bias=True"
    if choice["attend"] == "slots" and choice["phase"] != "prefill" and getattr(score, "window", 1) > 1:
        return "positions='slots'"
    return None


def cover(seed: int = 0) -> Iterator[Choice]:
    """Compositions that can work, such that every pair of stages that can work together occurs in one."""
    draw = random.Random(seed)
    names = list(FACTORS)
    pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(FACTORS[a]))
        for j in range(len(FACTORS[b]))
    }
    while pairs:
        a, i, b, j = min(pairs)
        best: tuple[int, dict[str, int]] | None = None
        for _ in range(60):
            index = {name: draw.randrange(len(options)) for name, options in FACTORS.items()} | {a: i, b: j}
            if why_refused(_choice(index)) is None:
                news = len(pairs & _pairs(index))
                if best is None or news > best[0]:
                    best = news, index
        if best is None:
            pairs.discard((a, i, b, j))  # this pair is refused, whatever else is chosen
            continue
        pairs -= _pairs(best[1])
        yield _choice(best[1])


def _choice(index: Mapping[str, int]) -> Choice:
    return {name: FACTORS[name][number] for name, number in index.items()}


def _pairs(index: Mapping[str, int]) -> set[tuple[str, int, str, int]]:
    return {(a, index[a], b, index[b]) for a, b in itertools.combinations(FACTORS, 2)}
