"""When a layer is over its budget: who must wait for whom, who gets how much, and what is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import numpy as np

from . import _engine
from ._layer import Layer
from ._policy import Pipeline
from ._protocols import Ahead, Backend, CrossLayer, Recaller
from ._types import CacheView, Counts, HeadCounts, Phase, Plan, Rotate, Scored, Step
from .selectors import TopK

__all__ = ["Listener", "Planner", "in_slots"]

Listener = Callable[[int, CacheView, Plan, Step], None]
BatchMask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]  # [B]


@final
@dataclass(frozen=True, slots=True)
class _Waiting:
    """A scored layer that waits for the others."""

    layer: Layer
    scored: Scored
    step: Step
    quota: HeadCounts | None


@final
class Planner:
    """Plans for the layers of one session.

    Args:
        layers: those of the session.
        ops: the backend.
        check: verify every stage's answer.
        listen: called with every plan before it is carried out.
        turn: turns rotary vectors, where positions are re-indexed.
    """

    def __init__(
        self,
        layers: list[Layer],
        ops: Backend,
        *,
        check: bool,
        listen: Listener | None,
        turn: Rotate | None,
    ) -> None:
        self._layers, self.ops, self._check, self._listen = layers, ops, check, listen
        self._turn = turn
        self.clear()

    def clear(self) -> None:
        """Start over as a new request."""
        self._waiting: list[_Waiting] = []
        self._handed: dict[int, list[HeadCounts]] = {}  # by token: its quotas so far, where each layer's is known ahead

    def run(self, pipeline: Pipeline, state: Layer, view: CacheView, step: Step) -> None:
        """Plan and compact, if the schedule gives a budget and the rows exceed it; or note a layer that must wait."""
        budget = _engine.budget_of(pipeline, step)
        if budget is None:
            return
        if pipeline.recall is not None and state.archived.any():
            view, step = self._take_back(pipeline.recall, state, step)
        quota = self._ahead(pipeline, budget, view, step)
        if step.phase is Phase.PREFILL:
            state.prompt_quota = np.repeat(budget[:, None], state.held.shape[1], axis=1) if quota is None else quota
        if not (pipeline.allocate.whole_model or isinstance(pipeline.score, CrossLayer)):
            if _over([state], [quota], budget).any():
                scored = _engine.score(pipeline, view, step, check=self._check)
                self._plan([_Waiting(state, scored, step, quota)], pipeline, budget)
            return
        scored = _engine.score(pipeline, view, step, check=self._check)
        self._waiting.append(_Waiting(state, scored, step, quota))
        if len(self._waiting) < len(self._layers):
            return
        waiting, self._waiting = self._waiting, []
        together = [waiting] if pipeline.allocate.whole_model else [[entry] for entry in waiting]
        if any(_over([e.layer for e in entries], [e.quota for e in entries], budget).any() for entries in together):
            self._plan(waiting, pipeline, budget)

    def _take_back(self, recaller: Recaller, state: Layer, step: Step) -> tuple[CacheView, Step]:
        """Let rows return; the table and the step as they are then."""
        assert state.archive is not None
        before = state.held
        archive = state.archive.view(near=getattr(recaller, "reads_vectors", True))
        state.take_back(_engine.recall(recaller, archive, step), self.ops)
        view, queries = in_slots(state.store.view(), self._turn, self.ops), step.queries
        if self._turn is not None:  # older rows have come back, and the queries stand behind them
            xp = view.xp
            by = step.heads.own(state.held - before)
            by = xp.asarray(by, dtype=xp.int64, device=view.positions.device)
            by = xp.repeat(by, queries.shape[1] // by.shape[1], axis=1)
            queries = self._turn(queries, xp.broadcast_to(by[..., None], queries.shape[:3]))
        held = tuple(other.held for other in self._layers)
        return view, replace(step, queries=queries, held=held, whole_pass=False)

    def _ahead(self, pipeline: Pipeline, budget: Counts, view: CacheView, step: Step) -> HeadCounts | None:
        """The layer's quota, where it is known before scoring; the last layer of a pass settles the account."""
        if not isinstance(pipeline.allocate, Ahead) or pipeline.allocate.whole_model:
            return None
        quota = _engine.ahead(pipeline.allocate, budget, view, step)
        # A layer may run several tokens before the next layer runs the first of them.
        handed = [*(self._handed.get(step.length, []) if view.layer else []), quota]
        self._handed[step.length] = handed
        if view.layer == len(self._layers) - 1:
            total = np.sum([quota.sum(axis=1) for quota in self._handed.pop(step.length)], axis=0)
            _engine.check_total(pipeline, total, budget * sum(quota.shape[1] for quota in handed))
        return quota

    def _plan(self, entries: list[_Waiting], pipeline: Pipeline, budget: Counts) -> None:
        layers, last = [entry.scored for entry in entries], entries[-1].step
        layers = list(_engine.across(pipeline, layers, last, check=self._check))
        if pipeline.allocate.whole_model:
            quotas = list(_engine.allocate(pipeline, budget, layers, last))
        else:
            quotas = [
                _engine.allocate(pipeline, budget, [scored], entry.step)[0] if entry.quota is None else entry.quota
                for entry, scored in zip(entries, layers, strict=True)
            ]
        # A batch row that holds no more than it may keeps it all and has no plan, whatever another row holds.
        numbers = range(len(entries))
        for group in [numbers] if pipeline.allocate.whole_model else [[n] for n in numbers]:
            over = _over([entries[n].layer for n in group], [entries[n].quota for n in group], budget)
            for n in group:
                self._carry_out(pipeline, entries[n], layers[n], quotas[n], over)

    def _carry_out(
        self, pipeline: Pipeline, entry: _Waiting, scored: Scored, quota: HeadCounts, over: BatchMask
    ) -> None:
        """Bring the batch rows that are ``over`` their budget down to the quota, [B, parts * H]."""
        state, step = entry.layer, entry.step
        due = np.where(over[:, None], quota, np.maximum(quota, state.held))
        own = step.heads.own
        made = _engine.plan(pipeline, scored, own(due), step, check=self._check)
        if self._listen is not None and not state.on_trial:
            self._listen(scored.view.layer, scored.view, made, step)
        kept = self._kept(pipeline, state, scored, made, due, step)
        if pipeline.recall is not None:
            state.release(scored.view, made, kept, self.ops)
        state.apply(scored.view, made, kept)
        state.exceeded = np.where(over, own(np.maximum(kept - due, 0)).sum(axis=1), state.exceeded)
        if step.phase is Phase.PREFILL:
            state.prompt_quota = np.where(over[:, None], quota, state.prompt_quota)
            state.prompt_kept = state.held

    def _kept(
        self, pipeline: Pipeline, state: Layer, scored: Scored, made: Plan, quota: HeadCounts, step: Step
    ) -> HeadCounts:
        """Rows kept by each head: counted, or, unchecked, known in advance from the quota and `TopK`."""
        if not self._check and isinstance(pipeline.select, TopK) and not pipeline.select.text:
            known: HeadCounts = np.minimum(state.held, np.maximum(quota, pipeline.select.floor))
            return known
        xp = scored.view.xp
        return np.asarray(self.ops.host(step.heads.all(xp.sum(xp.astype(made.keep, xp.int64), axis=-1))))


def in_slots(view: CacheView, turn: Rotate | None, ops: Backend) -> CacheView:
    """The table to attend over and to score: its keys turned to their slots where positions are re-indexed."""
    if turn is None:
        return view
    xp, by = view.xp, ops.arrival_rank(view) - view.positions
    return replace(view, keys=turn(view.keys, xp.where(view.valid, by, xp.zeros_like(by))))


def _over(layers: list[Layer], quotas: list[HeadCounts | None], budget: Counts) -> BatchMask:
    """Which batch rows hold more than they may: head by head where quotas are known, in total otherwise; bool [B]."""
    known = [quota for quota in quotas if quota is not None]
    if len(known) == len(layers):
        heads = [(state.held > quota).any(axis=1) for state, quota in zip(layers, known, strict=True)]
        return np.asarray(np.stack(heads).any(axis=0))
    held = np.sum([state.held.sum(axis=1) for state in layers], axis=0)
    over: BatchMask = held > budget * sum(state.held.shape[1] for state in layers)
    return over
