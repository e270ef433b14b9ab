"""From a table to a Plan: score, allocate, select, merge. Pure: values in, values out.

Every stage's answer is checked here, so that a mistake in a user's stage is named with its layer instead of being
carried into the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ._doubts import Doubts
from ._errors import PlanError
from ._namespace import along
from ._policy import Pipeline, Policy
from ._protocols import Ahead, CrossLayer, Merger, Observer, Recaller, Windowed
from ._types import Array, CacheView, Column, Counts, HeadCounts, KeepMask, Phase, Plan, Scored, Selection, Step
from .schedulers import MOST_ROWS

__all__ = [
    "Trust",
    "across",
    "ahead",
    "alike_heads",
    "allocate",
    "budget_of",
    "check_total",
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


def alike_heads(pipeline: Pipeline) -> bool:
    """Whether heads that hold the same tokens go on doing so under equal quotas, by what the stages say."""
    return all(getattr(stage, "alike_heads", False) for stage in (pipeline.score, pipeline.select))


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
    _check_scores(pipeline, scores, view, step, doubts, check=check)
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
    if not hasattr(final, "__len__") or len(final) != len(layers):
        got = len(final) if hasattr(final, "__len__") else type(final).__name__
        raise PlanError(f"{pipeline.score!r}.across() returned {got} scores for {len(layers)} layers.")
    doubts = Doubts()
    for scored, scores in zip(layers, final, strict=True):
        _check_scores(pipeline, scores, scored.view, step, doubts, check=check)
    doubts.settle()
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


def plan(
    pipeline: Pipeline,
    scored: Scored,
    quota: HeadCounts,
    step: Step,
    *,
    check: bool,
    alike: bool = False,
    unmerged: bool = False,
    trust: Trust | None = None,
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
    if not isinstance(selection, Selection):
        raise PlanError(
            f"{_at(pipeline.select, view)} returned a {type(selection).__name__}; select() must return a Selection."
        )
    _check_mask("selection of", pipeline.select, selection.keep, one.view)
    if not (alike and unmerged and getattr(pipeline.merge, "alike_heads", False)):
        one, selection = scored, of_all_heads(selection, view)
    made = pipeline.merge.merge(one, selection, step)
    if not isinstance(made, Plan):
        raise PlanError(f"{_at(pipeline.merge, view)} returned a {type(made).__name__}; merge() must return a Plan.")
    _check_mask("plan of", pipeline.merge, made.keep, one.view)
    made = of_all_heads(made, view)
    trust = trust or (Trust.of(pipeline) if check else Trust(plans=True, scores=True))
    if check and not trust.plans:
        _doubt_keep(pipeline, view, of_all_heads(selection, view).keep, made.keep, doubts)
    if check and alike and not trust.scores:
        _doubt_alike(pipeline, scored, made.keep, step, doubts)
    if made.into is not None:
        _check_folds(made, pipeline.merge, view, doubts, check=check and not trust.plans)
    if later is None:
        doubts.settle()
    plan: Plan = made
    if not selection.registers:
        return plan
    return replace(plan, registers={**of_all_heads(selection, view).registers, **plan.registers})


class Trust(NamedTuple):
    """What needs no look at values, because kvpolicy's own stages made it, whose laws are tested.

    Attributes:
        plans: what selector and merger answer.
        scores: also that the scorer treats heads alike if it says so.
    """

    plans: bool
    scores: bool

    @classmethod
    def of(cls, pipeline: Pipeline) -> Trust:
        """By where the stages come from, and all that they are made of."""
        plans = _is_ours(pipeline.select) and _is_ours(pipeline.merge)
        return cls(plans, plans and _is_ours(pipeline.score))


def _is_ours(stage: object) -> bool:
    if type(stage).__module__.partition(".")[0] != __name__.partition(".")[0]:
        return False
    parts = [getattr(stage, field.name) for field in fields(stage)] if is_dataclass(stage) else []
    return all(_is_ours(part) for part in parts if is_dataclass(part))


def of_one_head(scored: Scored) -> Scored:
    """The first head alone, of heads that hold the same tokens in the same slots and have the same scores."""
    view, rank = scored.view, scored.view.known_rank
    part = replace(
        view,
        keys=view.keys[:, :1],
        values=view.values[:, :1],
        positions=view.positions[:, :1],
        valid=view.valid[:, :1],
        columns={name: replace(column, data=column.data[:, :1]) for name, column in view.columns.items()},
        registers={name: data[:, :1] for name, data in view.registers.items()},
        rank=None if rank is None else rank[:, :1],
    )
    return Scored(part, scored.scores[:, :1])


def of_all_heads(made: Any, view: CacheView) -> Any:
    """A selection or a plan of one head, for all heads of the view; one of all heads as it is."""
    xp, heads = view.xp, view.shape[1]
    if made.keep.shape[1] == heads:
        return made

    def spread(data: Array) -> Array:
        return xp.broadcast_to(data, (data.shape[0], heads, *data.shape[2:]))

    registers = {name: spread(data) for name, data in made.registers.items()}
    names = ("keep", "groups", "into", "weight", "self_weight", "key_scale", "value_scale")
    told = {name: getattr(made, name, None) for name in names}
    return replace(made, registers=registers, **{n: spread(data) for n, data in told.items() if data is not None})


def _doubt_keep(pipeline: Pipeline, view: CacheView, selected: KeepMask, kept: KeepMask, doubts: Doubts) -> None:
    """That padding stays, or that other rows stay than were selected."""
    padding = f"selection of {_at(pipeline.select, view)} keeps padding or an empty slot."
    others = f"plan of {_at(pipeline.merge, view)} does not keep the rows that were selected."
    doubts.add(view.xp.any(selected & ~view.valid), lambda: PlanError(padding))
    if kept is not selected:
        doubts.add(view.xp.any(kept != selected), lambda: PlanError(others))


def _doubt_alike(pipeline: Pipeline, scored: Scored, keep: KeepMask, step: Step, doubts: Doubts) -> None:
    """That heads which held the same rows have other scores or keep other rows, although the stages deny it."""
    view, xp = scored.view, scored.view.xp

    def differ(data: Array) -> Array:
        everywhere = step.heads.all(data)
        return xp.any(everywhere != everywhere[:, :1])

    known = xp.where(view.valid, scored.scores, xp.zeros_like(scored.scores))
    unlike = differ(known)  # of the selector nothing else is asked, unless processes share the heads
    scorer, selector = _at(pipeline.score, view), _at(pipeline.select, view)

    def error() -> PlanError:
        return PlanError(
            f"{scorer if bool(unlike) else selector} says alike_heads = True, and does not treat heads alike that hold "
            f"the same tokens. Hint: leave alike_heads out."
        )

    doubts.add(unlike if step.heads.parts == 1 else unlike | differ(keep), error)


def _check_folds(made: Plan, merge: Merger, view: CacheView, doubts: Doubts, *, check: bool) -> None:
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
    reached = inside & xp.reshape(along(made.keep, flat, axis=-1), into.shape)
    leaves = (view.valid & ~made.keep)[..., None]
    places = f"{where} folds a row that stays, or into one that does not."
    doubts.add(xp.any(goes & ~(reached & leaves)), lambda: PlanError(places))
    endless = [goes & ~xp.isfinite(weight), *(made.keep & ~xp.isfinite(data) for data in (own, *scales.values()))]
    for data in endless:
        doubts.add(xp.any(data), lambda: PlanError(f"{where} has weights that are NaN or infinite."))


def _check_scores(pipeline: Pipeline, scores: Any, view: CacheView, step: Step, doubts: Doubts, *, check: bool) -> None:
    _check_shape("scores of", pipeline.score, scores, view)
    xp = view.xp
    if not xp.isdtype(scores.dtype, "real floating"):
        raise PlanError(
            f"scores of {_at(pipeline.score, view)} have dtype {scores.dtype}; they must be floating. "
            f"Hint: view.xp.astype(scores, view.xp.float32)."
        )
    if not check:
        return
    nan, host, where = xp.isnan(scores) & view.valid, step.ops.host, _at(pipeline.score, view)

    def error() -> PlanError:
        found = host(nan)
        row, head, slot = (int(i[0]) for i in np.nonzero(found))
        return PlanError(
            f"scores of {where} are NaN (first at batch row {row}, head {head}, row {slot}, "
            f"{int(np.sum(found))} in all). Hint: -inf marks a row as worthless, NaN means nothing."
        )

    doubts.add(xp.any(nan), error)


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
