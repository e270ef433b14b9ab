"""Stages of a caller's own, for tests: plain classes that inherit from nothing; and policies made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from driving import Request

from kvpolicy import AttentionMass, CacheView, FixedRows, Pipeline, Policy, Scored, Step

__all__ = [
    "ByHead",
    "ByLayer",
    "LayerMean",
    "Loudness",
    "Recall",
    "Watch",
    "Wide",
    "both",
    "every",
    "loudest",
    "recalling",
    "sizes",
]


@dataclass(frozen=True)
class Loudness:
    """The value itself."""

    def score(self, view: CacheView, step: Step) -> Any:
        return view.values[..., 0]


@dataclass(frozen=True)
class ByHead:
    """``budget + extra[layer][head]`` rows, known ahead; the extras sum to zero unless a test wants a wrong total."""

    extra: tuple[tuple[int, ...], ...]
    whole_model: bool = False

    def ahead(self, budget: Any, layer: int, num_layers: int, heads: int, step: Step) -> Any:
        return np.maximum(budget[:, None] + np.array(self.extra[layer]), 0)

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        views = [scored.view for scored in layers]
        return [self.ahead(budget, view.layer, view.num_layers, view.shape[1], step) for view in views]


@dataclass(frozen=True)
class ByLayer:
    """``budget + extra[layer]`` rows for every head of a layer, told when all layers are scored."""

    extra: tuple[int, ...]
    whole_model: bool = True

    def allocate(self, budget: Any, layers: Sequence[Scored], step: Step) -> list[Any]:
        heads = layers[0].view.shape[1]
        return [np.repeat(budget[:, None] + more, heads, axis=1) for more in self.extra]


@dataclass(frozen=True)
class LayerMean:
    """The mean over all layers of another scorer's scores, where the tables have the same shape."""

    scorer: Any

    def score(self, view: CacheView, step: Step) -> Any:
        return self.scorer.score(view, step)

    def across(self, layers: Sequence[Scored], step: Step) -> list[Any]:
        if len({tuple(scored.scores.shape) for scored in layers}) > 1:
            return [scored.scores for scored in layers]
        total = sum(scored.scores for scored in layers)
        return [total / len(layers) for _ in layers]


@dataclass(frozen=True)
class Wide:
    """The attention that the latest queries pay."""

    window: int

    def score(self, view: CacheView, step: Step) -> Any:
        return step.ops.attention_mass(view, step.latest(self.window))


class Watch:
    """Schedule and scorer at once: looks at the latest queries of every layer and pass, and leaves the table alone.

    ``seen[layer]`` holds for each pass, for each batch row, the positions and queries.
    """

    def __init__(self, window: int, layers: int = 1) -> None:
        self.window = window
        self.seen: list[list[Any]] = [[] for _ in range(layers)]
        self.steps: list[Step] = []

    def score(self, view: CacheView, step: Step) -> Any:
        raise AssertionError("nothing is planned")

    def budget(self, step: Step) -> None:
        last = step.latest(self.window)
        assert last.queries.shape[2] == last.query_positions.shape[1] <= self.window
        queries, places, real = (np.asarray(data) for data in (last.queries, last.query_positions, last.query_valid))
        seen = [
            [(int(places[b, i]), queries[b, :, i].tolist()) for i in np.flatnonzero(real[b])] for b in range(len(real))
        ]
        self.seen[len(self.steps) % len(self.seen)].append(seen)
        self.steps.append(step)


class Recall:
    """What a function of the archive and the step says: a mask of the archive."""

    def __init__(self, answer: Callable[[CacheView, Step], Any]) -> None:
        self.answer = answer

    def recall(self, archive: CacheView, step: Step) -> Any:
        return self.answer(archive, step)


def both(rows: int, score: Any = None, **stages: Any) -> Policy:
    stage = Pipeline(schedule=FixedRows(rows), score=score or Loudness(), **stages)
    return Policy(prefill=stage, decode=stage)


def sizes(done: Any) -> list[list[list[int]]]:
    """Rows of each head, [layer][batch row][head]."""
    return [[[len(table.positions) for table in heads] for heads in layer] for layer in done.tables]


def loudest(request: Request, layer: int, b: int, h: int, tokens: int, rows: int) -> list[int]:
    """What `Loudness` keeps: the best so many of all tokens, if none of them has left before."""
    seen = np.arange(request.left[b], tokens)
    return sorted(seen[np.argsort(request.values[layer, b, h, seen, 0])[-rows:]].tolist())


def every(number: int) -> Recall:
    """Rows whose position is so far from the latest token, modulo ``number``."""
    return Recall(lambda archive, step: (archive.positions + int(step.seen.max())) % number == 0)


def recalling(recall: Any, rows: int = 5, **stages: Any) -> Pipeline:
    return Pipeline(schedule=FixedRows(rows), **{"score": AttentionMass(), **stages}, recall=recall)
