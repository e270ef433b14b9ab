"""When a layer is over its budget: who must wait for whom, who gets how much, and what is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, final

import numpy as np

from . import _engine
from ._alike import alike_heads
from ._answers import Trust, check_total
from ._doubts import Doubts
from ._layer import Layer
from ._namespace import namespace
from ._plan import Plan, Scored
from ._policy import Pipeline, Policy
from ._protocols import Ahead, Backend, CrossLayer, Recaller
from ._slots import in_slots
from ._step import Phase, Step
from ._types import CacheView, Counts, HeadCounts, Rotate
from .selectors import TopK

__all__ = ["Listener", "Planner"]

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
@dataclass(frozen=True, slots=True)
class _Nature:
    """What is asked of a pipeline at every token; asked once, since to ask a protocol takes long.

    Attributes:
        ahead: its allocator, where a layer's quota is known before scoring.
        crosses: its scores depend on other layers.
        waits: every layer is scored before any is planned.
        alike: see `alike_heads`.
        trust: see `Trust`.
        floor: how many rows a head keeps however small its quota is, where the number follows from the quota.
    """

    ahead: Ahead | None
    crosses: bool
    waits: bool
    alike: bool
    trust: Trust
    floor: int | None

    @classmethod
    def of(cls, pipeline: Pipeline) -> _Nature:
        whole, allocate, select = pipeline.allocate.whole_model, pipeline.allocate, pipeline.select
        crosses = isinstance(pipeline.score, CrossLayer)
        return cls(
            ahead=allocate if isinstance(allocate, Ahead) and not whole else None,
            crosses=crosses,
            waits=whole or crosses,
            alike=alike_heads(pipeline),
            trust=Trust.of(pipeline),
            floor=select.floor if isinstance(select, TopK) and not select.text else None,
        )


@final
class Planner:
    """Plans for the layers of one session.

    Args:
        policy: of the session.
        layers: those of the session.
        ops: the backend.
        check: verify every stage's answer.
        listen: called with every plan before it is carried out.
        turn: turns rotary vectors, where positions are re-indexed.
    """

    def __init__(
        self,
        policy: Policy,
        layers: list[Layer],
        ops: Backend,
        *,
        check: bool,
        listen: Listener | None,
        turn: Rotate | None,
    ) -> None:
        self._layers, self.ops, self._check, self._listen = layers, ops, check, listen
        self._turn = turn
        pipelines = {Phase.PREFILL: policy.prefill, Phase.DECODE: policy.decode}
        self._natures = {phase: _Nature.of(pipeline) for phase, pipeline in pipelines.items() if pipeline is not None}
        self.clear()

    def clear(self) -> None:
        """Start over as a new request."""
        self._doubts = Doubts()
        self._waiting: list[_Waiting] = []
        self._handed: dict[int, list[HeadCounts]] = {}  # by token: its quotas so far, where each layer's is known ahead

    def run(self, pipeline: Pipeline, state: Layer, view: CacheView, step: Step) -> None:
        """Plan and compact, if the schedule gives a budget and the rows exceed it; or note a layer that must wait.

        A value that is wrong may come to light only when the last layer has been run: as long as no other harm can
        come of it, nobody waits for the device.
        """
        self._run(pipeline, state, view, step)
        if view.layer == len(self._layers) - 1:
            self._doubts.settle()

    def _run(self, pipeline: Pipeline, state: Layer, view: CacheView, step: Step) -> None:
        nature = self._natures[step.phase]
        budget = _engine.budget_of(pipeline, step)
        if budget is None:
            return
        if pipeline.recall is not None and state.archived.any():
            view, step = self._take_back(pipeline.recall, state, step)
        quota = None if nature.ahead is None else self._ahead(pipeline, nature.ahead, budget, view, step)
        if step.phase is Phase.PREFILL:
            state.prompt_quota = np.repeat(budget[:, None], state.held.shape[1], axis=1) if quota is None else quota
        if not nature.waits:
            if _over([state], quota, budget).any():
                scored = _engine.score(pipeline, view, step, check=self._check, later=self._doubts)
                self._plan([_Waiting(state, scored, step, quota)], pipeline, budget)
            return
        scored = _engine.score(pipeline, view, step, check=self._check, later=self._doubts)
        self._waiting.append(_Waiting(state, scored, step, quota))
        if len(self._waiting) < len(self._layers):
            return
        waiting, self._waiting = self._waiting, []
        together = [waiting] if pipeline.allocate.whole_model else [[entry] for entry in waiting]
        if any(_over([e.layer for e in entries], entries[0].quota, budget).any() for entries in together):
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

    def _ahead(self, pipeline: Pipeline, allocator: Ahead, budget: Counts, view: CacheView, step: Step) -> HeadCounts:
        """The layer's quota, which is known before scoring; the last layer of a pass settles the account."""
        quota = _engine.ahead(allocator, budget, view, step)
        # A layer may run several tokens before the next layer runs the first of them.
        handed = [*(self._handed.get(step.length, []) if view.layer else []), quota]
        self._handed[step.length] = handed
        if view.layer == len(self._layers) - 1:
            total = np.sum([quota.sum(axis=1) for quota in self._handed.pop(step.length)], axis=0)
            check_total(pipeline, total, budget * sum(quota.shape[1] for quota in handed))
        return quota

    def _plan(self, entries: list[_Waiting], pipeline: Pipeline, budget: Counts) -> None:
        layers, last = [entry.scored for entry in entries], entries[-1].step
        nature = self._natures[last.phase]
        if nature.ahead is None or nature.crosses:  # these go by scores
            self._doubts.settle()
        if nature.crosses:
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
            over = _over([entries[n].layer for n in group], entries[group[0]].quota, budget)
            for n in group:
                self._carry_out(pipeline, entries[n], layers[n], quotas[n], over)

    def _carry_out(
        self, pipeline: Pipeline, entry: _Waiting, scored: Scored, quota: HeadCounts, over: BatchMask
    ) -> None:
        """Bring the batch rows that are ``over`` their budget down to the quota, [B, parts * H]."""
        state, step, nature = entry.layer, entry.step, self._natures[entry.step.phase]
        due = np.where(over[:, None], quota, np.maximum(quota, state.held))
        own = step.heads.own
        step = replace(step, surplus=max(0, int((state.held - due).max())))
        state.alike = state.alike and nature.alike and bool((due == due[:, :1]).all())
        known: dict[str, Any] = {"alike": state.alike, "unmerged": state.merged is None, "trust": nature.trust}
        made = _engine.plan(pipeline, scored, own(due), step, check=self._check, later=self._doubts, **known)
        told = self._listen is not None and not state.on_trial
        doubtful = made.into is not None and not nature.trust.plans
        if told or doubtful or pipeline.recall is not None or nature.floor is None:
            self._doubts.settle()
        if self._listen is not None and told:
            self._listen(scored.view.layer, scored.view, made, step)
        kept = self._kept(nature.floor, state, made, due, step)
        if pipeline.recall is not None:
            state.release(scored.view, made, kept, self.ops)
        state.apply(scored.view, made, kept)
        state.exceeded = np.where(over, own(np.maximum(kept - due, 0)).sum(axis=1), state.exceeded)
        if step.phase is Phase.PREFILL:
            state.prompt_quota = np.where(over[:, None], quota, state.prompt_quota)
            state.prompt_kept = state.held

    def _kept(self, floor: int | None, state: Layer, made: Plan, quota: HeadCounts, step: Step) -> HeadCounts:
        """Rows kept by each head: known in advance, or counted."""
        if floor is not None:
            known: HeadCounts = np.minimum(state.held, np.maximum(quota, floor))
            return known
        xp = namespace(made.keep)
        return np.asarray(self.ops.host(step.heads.all(xp.sum(made.keep, axis=-1, dtype=xp.int64))))


def _over(layers: list[Layer], quota: HeadCounts | None, budget: Counts) -> BatchMask:
    """Which batch rows hold more than they may, bool [B]: head by head if the layer's quota is known, else in total."""
    if quota is not None:
        (state,) = layers
        return np.asarray((state.held > quota).any(axis=1))
    held = np.sum([state.held.sum(axis=1) for state in layers], axis=0)
    over: BatchMask = held > budget * sum(state.held.shape[1] for state in layers)
    return over
