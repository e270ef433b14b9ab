"""Mergers, and their halves, on a scene: two merges one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..._errors import PlanError
from ..._plan import Scored, Selection
from ..._protocols import Backend
from ..._step import Step
from ..._types import Column
from ...mergers import Fold, Mean, MostSimilar, SameCluster
from ...selectors import Clusters
from .._numbers import Arr
from .._outcome import Outcome, Place, Record
from .._scene import Scene
from .planned import Planned, handed, in_numpy, on_host, table_outcome

__all__ = ["as_merger", "merged", "plans_of_merger", "selection_for"]


def as_merger(component: Any) -> Any:
    """The merger itself, or the half of one with a plain other half."""
    if hasattr(component, "merge"):
        return component
    if hasattr(component, "assign"):
        return Fold(component, Mean())
    groups = bool(getattr(component, "needs_groups", False))
    return Fold(SameCluster() if groups else MostSimilar(), component)


def plans_of_merger(component: Any, scene: Scene, ops: Backend, device: str | None) -> Iterator[Planned]:
    """Two merges one after another, so that rows that were merged are merged again and registers carry over."""
    merger = as_merger(component)
    staged = scene.on(ops, device, count_bias=bool(getattr(merger, "needs_count_bias", False)))
    for number, layer in enumerate(scene.layers):
        entry, step = staged.scored[number], staged.steps[number]
        selection = selection_for(merger, entry, staged.keep[number], layer.quota, step)
        plan = on_host(merger.merge(entry, selection, step), ops)
        first = Planned(in_numpy(entry.view, ops), plan, scene.padding, 0)
        yield first
        keep = layer.keep & (layer.positions % 2 == scene.padding[:, None, None] % 2)
        rows = {"": Column(np.where(layer.valid, layer.scores, 0.0)), " ": Column(keep)}
        try:
            table = replace(first, view=first.view.with_columns(rows)).after
        except PlanError:  # a plan that cannot be carried out is told of by itself, and has no second merge
            continue
        score, stays = table.columns[""].data, table.columns[" "].data.astype(bool)
        table = replace(table, columns={name: c for name, c in table.columns.items() if name.strip()})
        quota = stays.sum(-1)
        again = Scored(handed(table, scene.dtype, ops, device), ops.from_host(score, device=device))
        step = replace(step, whole_pass=False, held=(table.valid.sum(-1),) * len(scene.layers))
        selection = selection_for(merger, again, ops.from_host(stays, device=device), quota, step)
        plan = on_host(merger.merge(again, selection, step), ops)
        yield Planned(table, plan, scene.padding, 1)


def merged(component: Any, scene: Scene, ops: Backend, device: str | None) -> Outcome:
    """The tables after each of two merges, and the registers."""
    out: dict[Place, Record] = {}
    for planned in plans_of_merger(component, scene, ops, device):
        out |= table_outcome(planned.after, planned.padding, planned.when)
    return out


def selection_for(merger: Any, entry: Scored, keep: Any, quota: Arr, step: Step) -> Selection:
    """Rows that stay by chance, or, for a merger of clusters, the clusters' pivots."""
    if getattr(merger, "needs_groups", False):
        return Clusters().select(entry, np.maximum(quota, 1), step)
    return Selection(keep)
