"""Checks of what stages answer, before anybody builds on it: an error names the stage and the layer.

What only a look at values can tell is a doubt (`Doubts`), which may be settled later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np

from ._doubts import Doubts
from ._errors import PlanError
from ._namespace import along
from ._plan import Plan, Scored
from ._policy import Pipeline
from ._protocols import Merger
from ._step import Step
from ._types import Array, CacheView, Column, Counts, KeepMask

__all__ = [
    "Trust",
    "check_columns",
    "check_folds",
    "check_mask",
    "check_one_each",
    "check_quota",
    "check_scores",
    "check_total",
    "check_type",
    "doubt_alike",
    "doubt_keep",
]


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


def check_columns(observer: object, columns: Any, view: CacheView) -> None:
    """Raise `PlanError` unless they are columns of the table's shape."""
    if not isinstance(columns, Mapping) or not all(isinstance(column, Column) for column in columns.values()):
        raise PlanError(
            f"{_at(observer, view)} returned a {type(columns).__name__}; observe() must return a mapping of names to "
            f"Columns."
        )
    for name, column in columns.items():
        _check_shape(f"column {name!r} of", observer, column.data, view)


def check_one_each(stage: object, verb: str, what: str, answers: Any, layers: Sequence[Scored]) -> None:
    """Raise `PlanError` unless there is one answer for each layer."""
    if not hasattr(answers, "__len__") or len(answers) != len(layers):
        got = len(answers) if hasattr(answers, "__len__") else type(answers).__name__
        raise PlanError(f"{stage!r}{verb} returned {got} {what} for {len(layers)} layers.")


def check_type(verb: str, stage: object, answer: object, due: type, view: CacheView) -> None:
    """Raise `PlanError` unless the answer is of the type that is due."""
    if not isinstance(answer, due):
        raise PlanError(
            f"{_at(stage, view)} returned a {type(answer).__name__}; {verb}() must return a {due.__name__}."
        )


def check_scores(pipeline: Pipeline, scores: Any, view: CacheView, step: Step, doubts: Doubts, *, check: bool) -> None:
    """Raise `PlanError` unless they are floating and of the table's shape; with ``check``, doubt that none is NaN."""
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


def check_quota(allocator: object, quota: Any, rows: Any, view: CacheView, step: Step) -> None:
    """Raise `PlanError` unless it is an array of integers >= 0 for all heads; ``rows`` is the same on the host."""
    where, shape = _at(allocator, view), getattr(quota, "shape", None)
    due = (view.shape[0], step.heads.parts * view.shape[1])
    if shape is None or tuple(shape) != due:
        raise PlanError(
            f"quota of {where} has shape {shape and tuple(shape)}; it must be an array [batch, heads] = {list(due)}"
            f"{', of all heads of the layer: Step.heads' * (step.heads.parts > 1)}."
        )
    if not np.issubdtype(rows.dtype, np.integer) or np.any(rows < 0):
        raise PlanError(f"quota of {where} is {rows.tolist()}; it must be integers >= 0.")


def check_total(pipeline: Pipeline, total: Counts, due: Counts) -> None:
    """Raise `PlanError` unless the rows handed out are those that were to be handed out, [B]."""
    if not np.array_equal(total, due):
        raise PlanError(f"{pipeline.allocate!r} handed out {total} rows in all; the budget is exactly {due}.")


def doubt_keep(pipeline: Pipeline, view: CacheView, selected: KeepMask, kept: KeepMask, doubts: Doubts) -> None:
    """That padding stays, or that other rows stay than were selected."""
    padding = f"selection of {_at(pipeline.select, view)} keeps padding or an empty slot."
    others = f"plan of {_at(pipeline.merge, view)} does not keep the rows that were selected."
    doubts.add(view.xp.any(selected & ~view.valid), lambda: PlanError(padding))
    if kept is not selected:
        doubts.add(view.xp.any(kept != selected), lambda: PlanError(others))


def doubt_alike(pipeline: Pipeline, scored: Scored, keep: KeepMask, step: Step, doubts: Doubts) -> None:
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


def check_folds(made: Plan, merge: Merger, view: CacheView, doubts: Doubts, *, check: bool) -> None:
    """Raise `PlanError` unless what folds has the right shapes; with ``check``, doubt that it goes into kept rows."""
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


def check_mask(what: str, stage: object, mask: Any, view: CacheView) -> None:
    """Raise `PlanError` unless it is a bool mask of the table's shape."""
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
