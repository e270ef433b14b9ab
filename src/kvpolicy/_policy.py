"""A policy: one pipeline for the prompt, one for decoding. Immutable, comparable, printable, shared by any request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from ._check import check_choice, check_stage
from ._errors import PolicyError
from ._protocols import Allocator, ImportanceScorer, Merger, Scheduler, Selector
from ._repr import constructor_repr
from .allocators import Uniform
from .mergers import Drop
from .selectors import TopK

__all__ = ["Pipeline", "Policy"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How a table is brought down to its budget: score, allocate, select, merge.

    Args:
        schedule: when to act and how many rows may stay.
        score: what a row is worth.
        allocate: how the budget is shared among layers and heads.
        select: which rows fill a head's quota.
        merge: what becomes of the others.

    Raises:
        PolicyError: if a stage lacks its protocol's method; names the argument and the method.
    """

    schedule: Scheduler
    score: ImportanceScorer
    allocate: Allocator = Uniform()
    select: Selector = TopK()
    merge: Merger = Drop()

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_stage("Pipeline", "schedule", self.schedule, Scheduler)
        check_stage("Pipeline", "score", self.score, ImportanceScorer)
        check_stage("Pipeline", "allocate", self.allocate, Allocator)
        check_stage("Pipeline", "select", self.select, Selector)
        check_stage("Pipeline", "merge", self.merge, Merger)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which rows of a KV cache are kept, which are merged, and when.

    Args:
        prefill: runs when a prompt (or a further turn of several tokens) is complete; None keeps every row.
        decode: runs after every generated token; None keeps every row.
        count_bias: attend with ``+ log(count)``, so that a merged row weighs as many tokens as it stands for.

    Raises:
        PolicyError: if a pipeline is not a `Pipeline`, or count_bias not a bool.
    """

    prefill: Pipeline | None = None
    decode: Pipeline | None = None
    count_bias: bool = False

    __repr__ = constructor_repr

    def __post_init__(self) -> None:
        check_choice("Policy", "count_bias", self.count_bias, (True, False))
        for name in ("prefill", "decode"):
            pipeline = getattr(self, name)
            if pipeline is not None and not isinstance(pipeline, Pipeline):
                raise PolicyError(
                    f"Policy({name}={pipeline!r}): {name} must be a Pipeline or None. "
                    f"Hint: Policy({name}=Pipeline(schedule=..., score=...))."
                )
