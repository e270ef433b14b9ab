"""A policy: one pipeline for the prompt, one for decoding. Immutable, comparable, printable, shared by any request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from ._check import check_choice, check_stage
from ._errors import PolicyError
from ._protocols import Allocator, ImportanceScorer, Merger, Observer, Recaller, Scheduler, Selector, Windowed
from ._repr import constructor_repr, notebook_repr
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
        recall: which rows come back that had left; None: what leaves is gone.

    Raises:
        PolicyError: if a stage lacks its protocol's method, or two stages cannot work together; names both and why.
    """

    schedule: Scheduler
    score: ImportanceScorer
    allocate: Allocator = Uniform()
    select: Selector = TopK()
    merge: Merger = Drop()
    recall: Recaller | None = None

    __repr__ = constructor_repr
    _repr_pretty_ = notebook_repr

    def __post_init__(self) -> None:
        check_stage("Pipeline", "schedule", self.schedule, Scheduler)
        check_stage("Pipeline", "score", self.score, ImportanceScorer)
        check_stage("Pipeline", "allocate", self.allocate, Allocator)
        check_stage("Pipeline", "select", self.select, Selector)
        check_stage("Pipeline", "merge", self.merge, Merger)
        if self.recall is not None:
            check_stage("Pipeline", "recall", self.recall, Recaller)
        self._check_columns()
        if getattr(self.merge, "needs_groups", False) and not getattr(self.select, "gives_groups", False):
            raise PolicyError(
                f"Pipeline: {self.merge!r} folds clusters, and {self.select!r} makes none. Hint: select=Clusters()."
            )

    def _check_columns(self) -> None:
        """Columns that a stage needs must be among those that the scorer observes, where it says which those are."""
        observed = getattr(self.score, "columns", None if isinstance(self.score, Observer) else ())
        if observed is None:
            return
        for stage in (self.allocate, self.select, self.merge, self.recall):
            for name in getattr(stage, "needs", ()):
                if name not in observed:
                    raise PolicyError(
                        f"Pipeline: {stage!r} needs the column {name!r}, which {self.score!r} does not observe; it "
                        f"observes: {', '.join(observed) or 'none'}."
                    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which rows of a KV cache are kept, which are merged, and when.

    Args:
        prefill: runs when a prompt (or a further turn of several tokens) is complete; None keeps every row.
        decode: runs after every generated token; None keeps every row.
        count_bias: attend with ``+ log(count)``, so that a merged row weighs as many tokens as it stands for.
        positions: ``"original"`` leaves every key at the position where it arrived; ``"slots"`` attends as if the rows
            that are left had arrived one after another (re-indexed positions), by turning keys and queries.

    Raises:
        PolicyError: if a pipeline is not a `Pipeline`, another argument is out of range, or a pipeline needs what the
            policy does not do.
    """

    prefill: Pipeline | None = None
    decode: Pipeline | None = None
    count_bias: bool = False
    positions: Literal["original", "slots"] = "original"

    __repr__ = constructor_repr
    _repr_pretty_ = notebook_repr

    def __post_init__(self) -> None:
        check_choice("Policy", "count_bias", self.count_bias, (True, False))
        check_choice("Policy", "positions", self.positions, ("original", "slots"))
        for name in ("prefill", "decode"):
            pipeline = getattr(self, name)
            if pipeline is not None and not isinstance(pipeline, Pipeline):
                raise PolicyError(
                    f"Policy({name}={pipeline!r}): {name} must be a Pipeline or None. "
                    f"Hint: Policy({name}=Pipeline(schedule=..., score=...))."
                )
            if pipeline is not None:
                self._check_pipeline(name, pipeline)

    def _check_pipeline(self, name: str, pipeline: Pipeline) -> None:
        if getattr(pipeline.merge, "needs_count_bias", False) and not self.count_bias:
            raise PolicyError(
                f"Policy({name}=...): {pipeline.merge!r} makes keys that are right only if a merged row weighs as many "
                f"tokens as it stands for. Hint: count_bias=True."
            )
        window = pipeline.score.window if isinstance(pipeline.score, Windowed) else 1
        if name == "decode" and self.positions == "slots" and window > 1:
            raise PolicyError(
                f"Policy(decode=...): {pipeline.score!r} looks at {window} queries, and under positions='slots' the "
                f"earlier ones were asked when the rows stood in other slots. Hint: a window of 1, or "
                f"positions='original'."
            )
