"""Selections, those of a selector on a scene and those that a policy makes, and what they would be otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..._plan import Scored, Selection
from ..._policy import Pipeline, Policy
from ..._protocols import Backend
from ..._step import Step
from ..._types import Quota
from .._numbers import Arr
from .._outcome import Place
from .._scene import Scene
from ..requests import Stream
from .planned import handed, in_numpy
from .requests import requested

__all__ = ["Chosen", "selections_of_policy", "selections_of_selector"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """One selection.

    Attributes:
        layer: its number.
        positions: int64 [B, H, S].
        valid: bool [B, H, S].
        scores: floating [B, H, S].
        quota: int64 [B, H].
        keep: bool [B, H, S].
        padding: int64 [B].
        registers: what is to be remembered, each [B, H].
        otherwise: what the selector keeps with other scores and another quota.
    """

    layer: int
    positions: Arr
    valid: Arr
    scores: Arr
    quota: Arr
    keep: Arr
    padding: Arr
    registers: Mapping[str, Arr]
    otherwise: Callable[[Arr, Arr], Arr]

    @property
    def protected(self) -> Arr:
        """Rows that stay however small the quota is, bool [B, H, S]."""
        return self.otherwise(self.scores, np.zeros_like(self.quota))

    def place(self, b: int, h: int, slot: int = -1) -> Place:
        """Where a row is."""
        token = -1 if slot < 0 else int(self.positions[b, h, slot] - self.padding[b])
        return Place(-1, self.layer, int(b), int(h), token)


def selections_of_selector(component: Any, scene: Scene, ops: Backend, device: str | None) -> Iterator[Chosen]:
    """One for each layer."""
    staged = scene.on(ops, device)
    for entry, quota, step in zip(staged.scored, staged.quotas, staged.steps, strict=True):
        selection = component.select(entry, quota, step)
        yield _chosen(component, entry, quota, step, selection, scene.padding, device)


def selections_of_policy(policy: Policy, stream: Stream, ops: Backend, device: str | None) -> list[Chosen]:
    """All that are made in the course of a request."""
    made: list[Chosen] = []

    def watched(pipeline: Pipeline | None) -> Pipeline | None:
        if pipeline is None:
            return None
        return replace(pipeline, select=_Watch(pipeline.select, made, stream, device))

    requested(replace(policy, prefill=watched(policy.prefill), decode=watched(policy.decode)), stream, ops, device)
    return made


class _Watch:
    """A selector that writes down what another one does."""

    def __init__(self, inner: Any, made: list[Chosen], stream: Stream, device: str | None) -> None:
        self._inner, self._made, self._stream, self._device = inner, made, stream, device
        self.gives_groups = bool(getattr(inner, "gives_groups", False))
        self.needs = tuple(getattr(inner, "needs", ()))

    def __repr__(self) -> str:
        return repr(self._inner)

    def select(self, scored: Scored, quota: Quota, step: Step, /) -> Selection:
        selection: Selection = self._inner.select(scored, quota, step)
        ops = step.ops
        view = handed(in_numpy(scored.view, ops), self._stream.dtype, ops, self._device)  # the table goes on changing
        scores = ops.from_host(np.array(ops.host(scored.scores), np.float64), device=self._device)
        entry = Scored(view, scores)
        self._made.append(_chosen(self._inner, entry, quota, step, selection, self._stream.padding, self._device))
        return selection


def _chosen(
    component: Any, entry: Scored, quota: Arr, step: Step, selection: Selection, padding: Arr, device: str | None
) -> Chosen:
    ops, view = step.ops, entry.view

    def otherwise(scores: Arr, rows: Arr) -> Arr:
        again = Scored(view, ops.from_host(scores, device=device))
        return np.asarray(ops.host(component.select(again, rows, step).keep))

    return Chosen(
        layer=view.layer,
        positions=np.asarray(ops.host(view.positions)),
        valid=np.asarray(ops.host(view.valid)),
        scores=np.asarray(ops.host(entry.scores), np.float64),
        quota=np.asarray(quota),
        keep=np.array(ops.host(selection.keep)),
        padding=padding,
        registers={name: np.array(ops.host(data)) for name, data in selection.registers.items()},
        otherwise=otherwise,
    )
