"""Every verb of a backend on a scene."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._protocols import Backend
from ..._types import Plan
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
        view, host = entry.view, component.host
        leaves = view.valid & ~keep
        into, similarity = component.most_similar(view, leaves, keep)
        near = component.nearest_position(view, keep)
        target = view.xp.where(leaves, near, view.xp.full_like(near, -1))[..., None]
        ones = view.xp.ones_like(target, dtype=view.xp.float64)
        token = layer.positions - scene.padding[:, None, None]

        def where(index: Any, token: Arr = token) -> Arr:
            """The token of a row, in place of its slot."""
            slot = component.host(index)
            return np.where(slot < 0, -1, np.take_along_axis(token, np.maximum(slot, 0), axis=-1))

        named = {
            "attention_mass": host(component.attention_mass(view, step)),
            "attention_mass(group='max')": host(component.attention_mass(view, step, group="max")),
            "attention_mass(above=0.3)": host(component.attention_mass(view, step, above=0.3)),
            "most_similar": where(into),
            "similarity": host(similarity),
            "top_k": host(component.top_k(entry.scores, layer.quota, view)).astype(np.int64),
            "arrival_rank": host(component.arrival_rank(view)),
            "nearest_position": where(near),
            "segment_sum": host(component.segment_sum(ones, target)),
        }
        out |= by_row(scene, number, layer.valid, named)
        plan = Plan(keep=keep, into=target, weight=ones / 4, self_weight=ones[..., 0] / 2)
        after = component.compact(view, plan, max(1, int(layer.keep.sum(-1).max(initial=0))))
        out |= table_outcome(in_numpy(after, component), scene.padding, when=1)
    return out
