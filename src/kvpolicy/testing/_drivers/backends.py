"""Every verb of a backend on a scene."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..._plan import Plan
from ..._protocols import Backend
from ..._step import Step
from ..._types import CacheView, Column
from .._numbers import Arr
from .._outcome import Outcome, Place, Record
from .._scene import Scene
from .planned import by_row, in_numpy, table_outcome

__all__ = ["verbs"]


def verbs(component: Any, scene: Scene, ops: Backend, device: str | None) -> Outcome:
    """Every verb on the same tables."""
    staged = scene.on(component, device)
    out: dict[Place, Record] = {}
    for number, layer in enumerate(scene.layers):
        entry, step, keep = staged.scored[number], staged.steps[number], staged.keep[number]
        token, host = layer.positions - scene.padding[:, None, None], component.host
        known = Column(component.from_host(np.asarray(token, np.float64), device=device))
        view = entry.view.with_columns({"token": known})
        leaves = view.valid & ~keep
        into, similarity = component.most_similar(view, leaves, keep)
        near = component.nearest_position(view, keep)
        plan = _plan(view, keep, into, near)
        held = layer.valid.sum(axis=-1)
        most = np.maximum(held - layer.quota % 2, 0)  # some heads have one row too many
        ends = component.from_host(layer.quota // 2, device=device)
        lately, often = _few_queries(step, component, device)
        sinks = component.from_host(scene.sinks[number], device=device)
        shaped = replace(step, softcap=1.5, sinks=sinks, query_reach=step.query_positions + 1)

        def where(index: Any, token: Arr = token) -> Arr:
            """The token of a row, in place of its slot."""
            slot = component.host(index)
            return np.where(slot < 0, -1, np.take_along_axis(token, np.maximum(slot, 0), axis=-1))

        named = {
            "attention_mass": host(component.attention_mass(view, step)),
            "attention_mass(group='max')": host(component.attention_mass(view, step, group="max")),
            "attention_mass(above=0.3)": host(component.attention_mass(view, step, above=0.3)),
            "attention_mass(weights)": host(component.attention_mass(view, lately, weights=often)),
            "attention_mass(softcap, sinks, reach)": host(component.attention_mass(view, shaped)),
            "most_similar": where(into),
            "similarity": host(similarity),
            "top_k": host(component.top_k(entry.scores, layer.quota, view)).astype(np.int64),
            "top_k(surplus=1)": host(component.top_k(entry.scores, most, view, surplus=1)).astype(np.int64),
            "top_k(first, last)": host(component.top_k(entry.scores, layer.quota, view, first=1, last=ends)).astype(
                np.int64
            ),
            "arrival_rank": host(component.arrival_rank(view)),
            "arrival_rank, known": host(component.arrival_rank(replace(view, rank=component.arrival_rank(entry.view)))),
            "nearest_position": where(near),
            "segment_sum": host(component.segment_sum(plan.weight, plan.into)),
        }
        out |= by_row(scene, number, layer.valid, named)
        rows = max(1, int(layer.keep.sum(-1).max(initial=0)))
        for when, each in enumerate((plan, replace(plan, merge_keys=False)), start=1):
            out |= table_outcome(in_numpy(component.compact(view, each, rows), component), scene.padding, when)
    return out


def _few_queries(step: Step, component: Any, device: str | None) -> tuple[Step, Any]:
    """The step with its last two queries, those of earlier passes included, and how often each counts, [B, Q]."""
    few = step.latest(2)
    batch, queries = few.query_valid.shape
    often = np.broadcast_to(1.0 + np.arange(queries)[::-1], (batch, queries)).copy()
    return few, component.from_host(often, device=device)


def _plan(view: CacheView, keep: Any, into: Any, near: Any) -> Plan:
    """Rows that leave fold into the most similar row and into the nearest, with different weights and scales."""
    xp = view.xp
    ones = xp.ones_like(keep, dtype=xp.float64)
    near = xp.where(view.valid & ~keep, near, xp.full_like(near, -1))
    return Plan(
        keep=keep,
        into=xp.stack([into, near], axis=-1),
        weight=xp.stack([ones / 4, ones / 8], axis=-1),
        self_weight=ones / 2,
        key_scale=1.5 * ones,
        value_scale=0.75 * ones,
        registers={"rows kept": xp.sum(xp.astype(keep, xp.float64), axis=-1)},
    )
