"""From a table to a Plan: score, allocate, select, merge. Pure: values in, values out.

Every stage's answer is checked here, so that a mistake in a user's stage is named with its layer instead of being
carried into the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ._errors import PlanError
from ._policy import Pipeline, Policy
from ._protocols import Observer
from ._types import CacheView, Column, Counts, Phase, Plan, Quota, Scored, Step

__all__ = ["allocate", "budget_of", "observe", "plan", "score"]


def observe(policy: Policy, view: CacheView, step: Step) -> Mapping[str, Column]:
    """The columns that this pass adds to.

    The decode scorer observes prompts too, because what it accumulates must include them; the prefill scorer observes
    only prompts. Equal scorers observe once.
    """
    pipelines = [policy.decode] if step.phase is Phase.DECODE else [policy.prefill, policy.decode]
    observers: list[Observer] = []
    for pipeline in pipelines:
        if pipeline is not None and isinstance(pipeline.score, Observer) and pipeline.score not in observers:
            observers.append(pipeline.score)
    columns: dict[str, Column] = {}
    for observer in observers:
        for name, column in observer.observe(view.with_columns(columns), step).items():
            _check_shape(f"column {name!r} of", observer, column.data, view)
            columns[name] = column
    return columns


def budget_of(pipeline: Pipeline, step: Step) -> Counts | None:
    """The schedule's budget as int64 [B]; None where it leaves the table alone.

    Raises:
        PlanError: if it is not an integer, or one per batch row, or is below 1.
    """
    budget = pipeline.schedule.budget(step)
    if budget is None:
        return None
    rows = np.asarray(budget)
    if not np.issubdtype(rows.dtype, np.integer) or rows.shape not in ((), step.seen.shape) or np.any(rows < 1):
        raise PlanError(
            f"{pipeline.schedule!r}.budget() returned {budget!r}: it must be None, an integer >= 1, or one such "
            f"integer for each of the {len(step.seen)} batch rows."
        )
    return np.broadcast_to(rows.astype(np.int64), step.seen.shape)


def score(pipeline: Pipeline, view: CacheView, step: Step, *, check: bool) -> Scored:
    """Score a table.

    Raises:
        PlanError: if the scores have the wrong shape, or with ``check``, contain NaN on a valid row.
    """
    scores = pipeline.score.score(view, step)
    _check_shape("scores of", pipeline.score, scores, view)
    xp = view.xp
    if not xp.isdtype(scores.dtype, "real floating"):
        raise PlanError(f"scores of {_at(pipeline.score, view)} have dtype {scores.dtype}; they must be floating.")
    if check:
        nan = xp.isnan(scores) & view.valid
        if bool(xp.any(nan)):
            row, head, slot = (int(i[0]) for i in np.nonzero(step.ops.host(nan)))
            raise PlanError(
                f"scores of {_at(pipeline.score, view)} are NaN (first at batch row {row}, head {head}, row {slot}, "
                f"{int(np.sum(step.ops.host(nan)))} in all). Hint: -inf marks a row as worthless, NaN means nothing."
            )
    return Scored(view, scores)


def allocate(pipeline: Pipeline, budget: Counts, layers: Sequence[Scored], step: Step) -> Sequence[Quota]:
    """Quotas for these layers.

    Raises:
        PlanError: if there is not one [B, H] quota a layer, or the total is not the budget.
    """
    quotas = pipeline.allocate.allocate(budget, layers, step)
    if len(quotas) != len(layers):
        raise PlanError(f"{pipeline.allocate!r} returned {len(quotas)} quotas for {len(layers)} layers.")
    for quota, scored in zip(quotas, layers, strict=True):
        if tuple(quota.shape) != scored.view.shape[:2]:
            raise PlanError(
                f"quota of {_at(pipeline.allocate, scored.view)} has shape {tuple(quota.shape)}; "
                f"it must be [batch, heads] = {list(scored.view.shape[:2])}."
            )
    total = sum(np.sum(step.ops.host(q) if not isinstance(q, np.ndarray) else q, axis=1) for q in quotas)
    due = budget * sum(scored.view.shape[1] for scored in layers)
    if not np.array_equal(total, due):
        raise PlanError(f"{pipeline.allocate!r} handed out {total} rows in all; the budget is exactly {due}.")
    return quotas


def plan(pipeline: Pipeline, scored: Scored, quota: Quota, step: Step, *, check: bool) -> Plan:
    """Select and merge.

    Raises:
        PlanError: if the plan's shape is wrong, or with ``check``, keeps other rows than were selected, keeps padding,
            or folds into a row that is not kept.
    """
    view, xp = scored.view, scored.view.xp
    selection = pipeline.select.select(scored, quota, step)
    _check_shape("selection of", pipeline.select, selection.keep, view)
    made = pipeline.merge.merge(scored, selection, step)
    if not isinstance(made, Plan):
        raise PlanError(f"{_at(pipeline.merge, view)} returned a {type(made).__name__}; merge() must return a Plan.")
    _check_shape("plan of", pipeline.merge, made.keep, view)
    if check:
        if bool(xp.any(selection.keep & ~view.valid)):
            raise PlanError(f"selection of {_at(pipeline.select, view)} keeps padding or an empty slot.")
        if bool(xp.any(made.keep != selection.keep)):
            raise PlanError(f"plan of {_at(pipeline.merge, view)} does not keep the rows that were selected.")
        if made.into is not None:
            goes = made.into >= 0
            flat = xp.reshape(xp.where(goes, made.into, xp.zeros_like(made.into)), (*made.into.shape[:2], -1))
            reached = xp.reshape(xp.take_along_axis(made.keep, flat, axis=-1), made.into.shape)
            leaves = (view.valid & ~made.keep)[..., None]
            if bool(xp.any(goes & ~(reached & leaves))):
                raise PlanError(
                    f"plan of {_at(pipeline.merge, view)} folds a row that stays, or into one that does not."
                )
    return made


def _check_shape(what: str, stage: object, data: object, view: CacheView) -> None:
    shape = getattr(data, "shape", None)
    if shape is None or tuple(shape) != view.shape:
        got = type(data).__name__ if shape is None else f"shape {list(shape)}"
        raise PlanError(f"{what} {_at(stage, view)}: got {got}; needs [batch, heads, rows] = {list(view.shape)}.")


def _at(stage: object, view: CacheView) -> str:
    return f"{type(stage).__name__} at layer {view.layer}"
