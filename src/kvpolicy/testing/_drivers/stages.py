"""Scorers, selectors, allocators, schedulers and recallers on a scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import _engine
from ..._plan import Scored
from ..._policy import Pipeline
from ..._protocols import Ahead, Backend, ImportanceScorer, Observer
from ..._step import Step
from ..._types import CacheView, Column, Scores
from ...schedulers import FixedRows
from ...scorers._wrapped import observed_by
from .._numbers import Arr
from .._outcome import Outcome, Place, Record
from .._scene import Scene
from .planned import by_row

__all__ = ["allocated", "budgeted", "hosted", "recalled", "scored", "selected"]


class _Host(ImportanceScorer, Observer):
    """A scorer that stands where another would be; it does not say which columns there are, so all may be needed."""

    def score(self, view: CacheView, step: Step, /) -> Scores:
        return view.xp.astype(view.positions, view.xp.float64)

    def observe(self, view: CacheView, step: Step, /) -> Mapping[str, Column]:
        return {}


def hosted(**stages: Any) -> Pipeline:
    """A pipeline around a stage."""
    return Pipeline(**{"schedule": FixedRows(1), "score": _Host(), **stages})


def scored(component: Any, scene: Scene, ops: Backend, device: str | None) -> Outcome:
    """Scores, and the columns that were observed before."""
    staged, out = scene.on(ops, device), _nothing()
    tables = []
    for entry, step in zip(staged.scored, staged.steps, strict=True):
        view = entry.view.with_columns(observed_by(component, entry.view, step))
        tables.append(Scored(view, component.score(view, step)))
    layers = _engine.across(hosted(score=component), tables, staged.steps[-1], check=False)
    for number, (entry, layer) in enumerate(zip(layers, scene.layers, strict=True)):
        named = {"score": entry.scores, **{n: c.data for n, c in entry.view.columns.items() if n not in layer.columns}}
        out |= by_row(scene, number, layer.valid, {name: ops.host(data) for name, data in named.items()})
    return out


def selected(component: Any, scene: Scene, ops: Backend, device: str | None) -> Outcome:
    """1 for rows that stay and 0 for the others; with clusters, the token of each row's pivot."""
    staged, out = scene.on(ops, device), _nothing()
    rows = zip(staged.scored, staged.quotas, staged.steps, strict=True)
    for number, (entry, quota, step) in enumerate(rows):
        selection, layer = component.select(entry, quota, step), scene.layers[number]
        named = {"kept": ops.host(selection.keep).astype(np.int64)}
        if selection.groups is not None:
            group = ops.host(selection.groups)
            token = layer.positions - scene.padding[:, None, None]
            named["pivot"] = np.where(group < 0, -1, np.take_along_axis(token, np.maximum(group, 0), axis=-1))
        out |= by_row(scene, number, layer.valid, named)
    return out


def allocated(component: Any, scene: Scene, ops: Backend, device: str | None) -> Outcome:
    """Quotas, [B, H] of every layer."""
    staged, out = scene.on(ops, device), _nothing()
    for number, quota in enumerate(_quotas(component, staged.scored, staged.budget, staged.steps)):
        rows = quota if isinstance(quota, np.ndarray) else ops.host(quota)
        for b, h in np.ndindex(*rows.shape):
            out[Place(-1, number, b, h)] = {"quota": int(rows[b, h])}
    return out


def _quotas(component: Any, layers: Any, budget: Arr, steps: tuple[Step, ...]) -> list[Any]:
    if component.whole_model:
        return list(component.allocate(budget, list(layers), steps[-1]))
    views = [entry.view for entry in layers]
    if isinstance(component, Ahead):
        return [
            component.ahead(budget, view.layer, view.num_layers, view.shape[1], step)
            for view, step in zip(views, steps, strict=True)
        ]
    return [component.allocate(budget, [entry], step)[0] for entry, step in zip(layers, steps, strict=True)]


def budgeted(component: Any, scene: Scene, ops: Backend, device: str | None) -> Outcome:
    """Rows for each batch row; nothing where the table is left alone."""
    budget = _engine.budget_of(hosted(schedule=component), scene.on(ops, device).steps[-1])
    return {} if budget is None else {Place(-1, -1, b): {"budget": int(rows)} for b, rows in enumerate(budget)}


def recalled(component: Any, scene: Scene, ops: Backend, device: str | None) -> Outcome:
    """1 for rows of the archive that return and 0 for the others."""
    staged, out = scene.on(ops, device), _nothing()
    for number, (entry, step) in enumerate(zip(staged.scored, staged.steps, strict=True)):
        view = entry.view.with_columns(observed_by(getattr(component, "score", None), entry.view, step))
        mask = ops.host(component.recall(view, step)).astype(np.int64)
        out |= by_row(scene, number, scene.layers[number].valid, {"back": mask})
    return out


def _nothing() -> dict[Place, Record]:
    return {}
