"""From a table to a Plan: score, allocate, select, merge. Pure: values in, values out.

Every stage's answer is checked (`_answers`), so that a mistake in a user's stage is named with its layer instead of
being carried into the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import _answers
from ._alike import of_all_heads, of_one_head
from ._doubts import Doubts
from ._errors import PlanError
from ._plan import Plan, Scored, Selection
from ._policy import Pipeline, Policy
from ._protocols import Ahead, CrossLayer, Observer, Recaller, Windowed
from ._step import Phase, Step
from ._types import CacheView, Column, Counts, HeadCounts, KeepMask
from .schedulers import MOST_ROWS

__all__ = [
    "across",
    "ahead",
    "allocate",
    "budget_of",
    "goes_by_attention",
    "observe",
    "observed_by",
    "observers_of",
    "plan",
    "recall",
    "score",
    "window_of",
]


def observers_of(policy: Policy, phase: Phase) -> Sequence[Observer]:
    """Who observes the passes of a phase.

    The decode scorer observes prompts too, because what it accumulates must include them; the prefill scorer observes
    only prompts. Equal scorers observe once.
    """
    pipelines = [policy.decode] if phase is Phase.DECODE else [policy.prefill, policy.decode]
    observers: list[Observer] = []
    for pipeline in pipelines:
        if pipeline is not None and isinstance(pipeline.score, Observer) and pipeline.score not in observers:
            observers.append(pipeline.score)
    return observers


def observe(policy: Policy, view: CacheView, step: Step) -> Mapping[str, Column]:
    """The columns that this pass adds to, see `observed_by`."""
    return observed_by(observers_of(policy, step.phase), view, step)


def observed_by(observers: Sequence[Observer], view: CacheView, step: Step) -> Mapping[str, Column]:
    """The columns that this pass adds to.

    All observers see the table as it was before this pass was observed, so that two that add to the same column do not
    count it twice.

    Raises:
        PlanError: if an observer does not return columns of the table's shape.
    """
    columns: dict[str, Column] = {}
    for observer in observers:
        seen: Any = observer.observe(view, step)
        _answers.check_columns(observer, seen, view)
        columns.update(seen)
    return columns


def window_of(pipeline: Pipeline | None) -> int:
    """How many of the latest queries the scorer wants to see together; 0 if it says nothing of them."""
    return pipeline.score.window if pipeline is not None and isinstance(pipeline.score, Windowed) else 0


def goes_by_attention(pipeline: Pipeline | None) -> bool:
    """Whether a scorer may ask what attention rows receive: it observes every pass, or looks at queries."""
    return pipeline is not None and (isinstance(pipeline.score, Observer) or window_of(pipeline) > 0)


def budget_of(pipeline: Pipeline, step: Step) -> Counts | None:
    """The schedule's budget as int64 [B]; None where it leaves the table alone.

    Raises:
        PlanError: if it is not an integer, or one per batch row, or is below 1.
    """
    budget = pipeline.schedule.budget(step)
    if budget is None:
        return None
    try:
        rows = np.asarray(budget)
    except ValueError:  # a ragged list
        rows = np.asarray(None)
    if not np.issubdtype(rows.dtype, np.integer) or rows.shape not in ((), step.seen.shape) or np.any(rows < 1):
        raise PlanError(
            f"{pipeline.schedule!r}.budget() returned {budget!r}: it must be None, an integer >= 1, or one such "
            f"integer for each of the {len(step.seen)} batch rows."
        )
    if rows.dtype != np.int64:  # by way of unsigned: all are at least 1
        rows = np.minimum(rows.astype(np.uint64), np.uint64(MOST_ROWS)).astype(np.int64)
    return np.broadcast_to(np.minimum(rows, MOST_ROWS), step.seen.shape)


def score(pipeline: Pipeline, view: CacheView, step: Step, *, check: bool, later: Doubts | None = None) -> Scored:
    """Score a table.

    Args:
        pipeline: whose scorer does.
        view: the table.
        step: the pass.
        check: look at values too.
        later: where given, values are looked at when these doubts are settled.

    Raises:
        PlanError: if the scores have the wrong shape, or with ``check``, contain NaN on a valid row.
    """
    scores = pipeline.score.score(view, step)
    doubts = Doubts() if later is None else later
    _answers.check_scores(pipeline, scores, view, step, doubts, check=check)
    if later is None:
        doubts.settle()
    return Scored(view, scores)


def across(pipeline: Pipeline, layers: Sequence[Scored], step: Step, *, check: bool) -> Sequence[Scored]:
    """The layers with the scores that a `CrossLayer` scorer gives them once it has seen all; others as they are.

    Raises:
        PlanError: if there is not one array of scores a layer, or one is wrong (see `score`).
    """
    if not isinstance(pipeline.score, CrossLayer):
        return layers
    final = pipeline.score.across(layers, step)
    _answers.check_one_each(pipeline.score, ".across()", "scores", final, layers)
    doubts = Doubts()
    for scored, scores in zip(layers, final, strict=True):
        _answers.check_scores(pipeline, scores, scored.view, step, doubts, check=check)
    doubts.settle()
    return [Scored(scored.view, scores) for scored, scores in zip(layers, final, strict=True)]


def ahead(allocator: Ahead, budget: Counts, view: CacheView, step: Step) -> HeadCounts:
    """The quota of one layer, before it is scored; of all its heads, as every quota.

    Raises:
        PlanError: if it is not a numpy array [B, parts * H] of integers >= 0.
    """
    quota = allocator.ahead(budget, view.layer, view.num_layers, step.heads.parts * view.shape[1], step)
    _answers.check_quota(allocator, quota, quota, view, step)
    return quota


def allocate(pipeline: Pipeline, budget: Counts, layers: Sequence[Scored], step: Step) -> Sequence[HeadCounts]:
    """Quotas for these layers, brought to the host.

    Raises:
        PlanError: if there is not one [B, parts * H] quota of integers >= 0 a layer, or the total is not the budget.
    """
    quotas = pipeline.allocate.allocate(budget, layers, step)
    _answers.check_one_each(pipeline.allocate, "", "quotas", quotas, layers)
    known = []
    for quota, scored in zip(quotas, layers, strict=True):
        rows = quota if isinstance(quota, np.ndarray) or not hasattr(quota, "shape") else step.ops.host(quota)
        _answers.check_quota(pipeline.allocate, quota, rows, scored.view, step)
        known.append(rows)
    total = np.sum([rows.sum(axis=1) for rows in known], axis=0)
    _answers.check_total(pipeline, total, budget * sum(rows.shape[1] for rows in known))
    return known


def recall(recaller: Recaller, archive: CacheView, step: Step) -> KeepMask:
    """Which rows of an archive come back.

    Raises:
        PlanError: if it is not a bool mask of the archive's shape.
    """
    mask = recaller.recall(archive, step)
    _answers.check_mask("rows recalled by", recaller, mask, archive)
    return mask & archive.valid


def plan(
    pipeline: Pipeline,
    scored: Scored,
    quota: HeadCounts,
    step: Step,
    *,
    check: bool,
    alike: bool = False,
    unmerged: bool = False,
    trust: _answers.Trust | None = None,
    later: Doubts | None = None,
) -> Plan:
    """Select and merge; where heads are alike, for one of them.

    Args:
        pipeline: whose stages do.
        scored: the table with its scores.
        quota: int64 [B, H].
        step: the pass.
        check: look at values too.
        alike: by what the stages say, all heads keep the same rows.
        unmerged: no row of the table stands for several tokens.
        trust: `Trust.of` the pipeline, if it is known.
        later: where given, values are looked at when these doubts are settled.

    Raises:
        PlanError: if the plan's shape is wrong, or with ``check``, keeps other rows than were selected, keeps padding,
            keeps other rows in one head than in another against what the stages say, or folds into a row that is not
            kept.
    """
    view, doubts = scored.view, Doubts() if later is None else later
    one = of_one_head(scored) if alike and step.heads.parts == 1 else scored
    selection = pipeline.select.select(one, quota[:, : one.view.shape[1]], step)
    _answers.check_type("select", pipeline.select, selection, Selection, view)
    _answers.check_mask("selection of", pipeline.select, selection.keep, one.view)
    if not (alike and unmerged and getattr(pipeline.merge, "alike_heads", False)):
        one, selection = scored, of_all_heads(selection, view)
    made = pipeline.merge.merge(one, selection, step)
    _answers.check_type("merge", pipeline.merge, made, Plan, view)
    _answers.check_mask("plan of", pipeline.merge, made.keep, one.view)
    made = of_all_heads(made, view)
    trust = trust or (_answers.Trust.of(pipeline) if check else _answers.Trust(plans=True, scores=True))
    if check and not trust.plans:
        _answers.doubt_keep(pipeline, view, of_all_heads(selection, view).keep, made.keep, doubts)
    if check and alike and not trust.scores:
        _answers.doubt_alike(pipeline, scored, made.keep, step, doubts)
    if made.into is not None:
        _answers.check_folds(made, pipeline.merge, view, doubts, check=check and not trust.plans)
    if later is None:
        doubts.settle()
    plan: Plan = made
    if not selection.registers:
        return plan
    return replace(plan, registers={**of_all_heads(selection, view).registers, **plan.registers})
