"""From a table to a Plan: score, allocate, select, merge. Pure: values in, values out.

Every stage's answer is checked here, so that a mistake in a user's stage is named with its layer instead of being
carried into the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ._errors import PlanError
from ._policy import Pipeline, Policy
from ._protocols import Ahead, CrossLayer, Merger, Observer, Recaller, Windowed
from ._types import CacheView, Column, Counts, HeadCounts, KeepMask, Phase, Plan, Scored, Selection, Step
from .schedulers import MOST_ROWS

__all__ = ["across", "ahead", "allocate", "budget_of", "check_total", "observe", "plan", "recall", "score", "window_of"]


def observe(policy: Policy, view: CacheView, step: Step) -> Mapping[str, Column]:
    """The columns that this pass adds to.

    The decode scorer observes prompts too, because what it accumulates must include them; the prefill scorer observes
    only prompts. Equal scorers observe once; all see the table as it was before this pass was observed, so that two
    that add to the same column do not count it twice.

    Raises:
        PlanError: if an observer does not return columns of the table's shape.
    """
    pipelines = [policy.decode] if step.phase is Phase.DECODE else [policy.prefill, policy.decode]
    observers: list[Observer] = []
    for pipeline in pipelines:
        if pipeline is not None and isinstance(pipeline.score, Observer) and pipeline.score not in observers:
            observers.append(pipeline.score)
    columns: dict[str, Column] = {}
    for observer in observers:
        seen: Any = observer.observe(view, step)
        if not isinstance(seen, Mapping) or not all(isinstance(column, Column) for column in seen.values()):
            raise PlanError(
                f"{_at(observer, view)} returned a {type(seen).__name__}; observe() must return a mapping of names to "
                f"Columns."
            )
        for name, column in seen.items():
            _check_shape(f"column {name!r} of", observer, column.data, view)
            columns[name] = column
    return columns


def window_of(pipeline: Pipeline | None) -> int:
    """How many of the latest queries the scorer wants to see together; 0 if it says nothing of them."""
    return pipeline.score.window if pipeline is not None and isinstance(pipeline.score, Windowed) else 0


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
    rows = np.minimum(rows.astype(np.uint64), np.uint64(MOST_ROWS)).astype(np.int64)  # unsigned: all are at least 1
    return np.broadcast_to(rows, step.seen.shape)


def score(pipeline: Pipeline, view: CacheView, step: Step, *, check: bool) -> Scored:
    """Score a table.

    Raises:
        PlanError: if the scores have the wrong shape, or with ``check``, contain NaN on a valid row.
    """
    scores = pipeline.score.score(view, step)
    _check_scores(pipeline, scores, view, step, check=check)
    return Scored(view, scores)


def across(pipeline: Pipeline, layers: Sequence[Scored], step: Step, *, check: bool) -> Sequence[Scored]:
    """The layers with the scores that a `CrossLayer` scorer gives them once it has seen all; others as they are.

    Raises:
        PlanError: if there is not one array of scores a layer, or one is wrong (see `score`).
    """
    if not isinstance(pipeline.score, CrossLayer):
        return layers
    final = pipeline.score.across(layers, step)
    if not hasattr(final, "__len__") or len(final) != len(layers):
        got = len(final) if hasattr(final, "__len__") else type(final).__name__
        raise PlanError(f"{pipeline.score!r}.across() returned {got} scores for {len(layers)} layers.")
    for scored, scores in zip(layers, final, strict=True):
        _check_scores(pipeline, scores, scored.view, step, check=check)
    return [Scored(scored.view, scores) for scored, scores in zip(layers, final, strict=True)]


def ahead(allocator: Ahead, budget: Counts, view: CacheView, step: Step) -> HeadCounts:
    """The quota of one layer, before it is scored; of all its heads, as every quota.

    Raises:
        PlanError: if it is not a numpy array [B, parts * H] of integers >= 0.
    """
    quota = allocator.ahead(budget, view.layer, view.num_layers, step.heads.parts * view.shape[1], step)
    _check_quota(allocator, quota, quota, view, step)
    return quota


def allocate(pipeline: Pipeline, budget: Counts, layers: Sequence[Scored], step: Step) -> Sequence[HeadCounts]:
    """Quotas for these layers, brought to the host.

    Raises:
        PlanError: if there is not one [B, parts * H] quota of integers >= 0 a layer, or the total is not the budget.
    """
    quotas = pipeline.allocate.allocate(budget, layers, step)
    if not hasattr(quotas, "__len__") or len(quotas) != len(layers):
        got = len(quotas) if hasattr(quotas, "__len__") else type(quotas).__name__
        raise PlanError(f"{pipeline.allocate!r} returned {got} quotas for {len(layers)} layers.")
    known = []
    for quota, scored in zip(quotas, layers, strict=True):
        rows = quota if isinstance(quota, np.ndarray) or not hasattr(quota, "shape") else step.ops.host(quota)
        _check_quota(pipeline.allocate, quota, rows, scored.view, step)
        known.append(rows)
    total = np.sum([rows.sum(axis=1) for rows in known], axis=0)
    check_total(pipeline, total, budget * sum(rows.shape[1] for rows in known))
    return known


def check_total(pipeline: Pipeline, total: Counts, due: Counts) -> None:
    """Raise `PlanError` unless the rows handed out are those that were to be handed out, [B]."""
    if not np.array_equal(total, due):
        raise PlanError(f"{pipeline.allocate!r} handed out {total} rows in all; the budget is exactly {due}.")


def recall(recaller: Recaller, archive: CacheView, step: Step) -> KeepMask:
    """Which rows of an archive come back.

    Raises:
        PlanError: if it is not a bool mask of the archive's shape.
    """
    mask = recaller.recall(archive, step)
    _check_mask("rows recalled by", recaller, mask, archive)
    return mask & archive.valid


def plan(pipeline: Pipeline, scored: Scored, quota: HeadCounts, step: Step, *, check: bool) -> Plan:
    """Select and merge.

    Raises:
        PlanError: if the plan's shape is wrong, or with ``check``, keeps other rows than were selected, keeps padding,
            or folds into a row that is not kept.
    """
    view, xp = scored.view, scored.view.xp
    selection = pipeline.select.select(scored, quota, step)
    if not isinstance(selection, Selection):
        raise PlanError(
            f"{_at(pipeline.select, view)} returned a {type(selection).__name__}; select() must return a Selection."
        )
    _check_mask("selection of", pipeline.select, selection.keep, view)
    made = pipeline.merge.merge(scored, selection, step)
    if not isinstance(made, Plan):
        raise PlanError(f"{_at(pipeline.merge, view)} returned a {type(made).__name__}; merge() must return a Plan.")
    _check_mask("plan of", pipeline.merge, made.keep, view)
    if check:
        if bool(xp.any(selection.keep & ~view.valid)):
            raise PlanError(f"selection of {_at(pipeline.select, view)} keeps padding or an empty slot.")
        if bool(xp.any(made.keep != selection.keep)):
            raise PlanError(f"plan of {_at(pipeline.merge, view)} does not keep the rows that were selected.")
    if made.into is not None:
        _check_folds(made, pipeline.merge, view, check=check)
    return replace(made, registers={**selection.registers, **made.registers}) if selection.registers else made


def _check_folds(made: Plan, merge: Merger, view: CacheView, *, check: bool) -> None:
    xp, where = view.xp, f"plan of {_at(merge, view)}"
    into: Any = made.into
    weight: Any = made.weight
    own: Any = made.self_weight
    if into.ndim != 4 or tuple(into.shape[:3]) != view.shape or into.dtype != xp.int64:
        raise PlanError(
            f"{where}: into is {into.dtype} {list(into.shape)}; needs int64 [batch, heads, rows, M] with "
            f"[batch, heads, rows] = {list(view.shape)}."
        )
    scales = {name: data for name in ("key_scale", "value_scale") if (data := getattr(made, name)) is not None}
    shaped = [("weight", weight, into.shape), ("self_weight", own, view.shape)]
    for name, data, shape in (*shaped, *((name, data, view.shape) for name, data in scales.items())):
        if tuple(data.shape) != tuple(shape):
            raise PlanError(f"{where}: {name} has shape {list(data.shape)}; needs {list(shape)}.")
    if not check:
        return
    goes = into >= 0
    inside = goes & (into < view.shape[2])
    flat = xp.reshape(xp.where(inside, into, xp.zeros_like(into)), (*view.shape[:2], -1))
    reached = inside & xp.reshape(xp.take_along_axis(made.keep, flat, axis=-1), into.shape)
    leaves = (view.valid & ~made.keep)[..., None]
    if bool(xp.any(goes & ~(reached & leaves))):
        raise PlanError(f"{where} folds a row that stays, or into one that does not.")
    if bool(xp.any(goes & ~xp.isfinite(weight))) or any(
        bool(xp.any(made.keep & ~xp.isfinite(data))) for data in (own, *scales.values())
    ):
        raise PlanError(f"{where} has weights that are NaN or infinite.")


def _check_scores(pipeline: Pipeline, scores: Any, view: CacheView, step: Step, *, check: bool) -> None:
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


def _check_quota(allocator: object, quota: Any, rows: Any, view: CacheView, step: Step) -> None:
    where, shape = _at(allocator, view), getattr(quota, "shape", None)
    due = (view.shape[0], step.heads.parts * view.shape[1])
    if shape is None or tuple(shape) != due:
        raise PlanError(
            f"quota of {where} has shape {shape and tuple(shape)}; it must be an array [batch, heads] = {list(due)}"
            f"{', of all heads of the layer: Step.heads' * (step.heads.parts > 1)}."
        )
    if not np.issubdtype(rows.dtype, np.integer) or np.any(rows < 0):
        raise PlanError(f"quota of {where} is {rows.tolist()}; it must be integers >= 0.")


def _check_mask(what: str, stage: object, mask: Any, view: CacheView) -> None:
    _check_shape(what, stage, mask, view)
    if not view.xp.isdtype(mask.dtype, "bool"):
        raise PlanError(f"{what} {_at(stage, view)} has dtype {mask.dtype}; it must be bool.")


def _check_shape(what: str, stage: object, data: Any, view: CacheView) -> None:
    of_its_library = isinstance(data, type(view.positions))
    if not of_its_library or tuple(data.shape) != view.shape:
        got = f"shape {list(data.shape)}" if of_its_library else f"{type(data).__module__}.{type(data).__name__}"
        raise PlanError(
            f"{what} {_at(stage, view)}: got {got}; needs a {type(view.positions).__name__} "
            f"[batch, heads, rows] = {list(view.shape)}."
        )


def _at(stage: object, view: CacheView) -> str:
    return f"{type(stage).__name__} at layer {view.layer}"
