"""One request: the only mutable thing besides its stores.

Per layer a forward pass is two calls: `Session.append` brings the new rows in, the caller attends, and
`Session.advance` observes and, when the pass completes a prompt or a token, plans and compacts.

Lengths are counted on the host (numpy), so that deciding whether to act never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np

from . import _engine
from ._errors import CacheError
from ._policy import Pipeline, Policy
from ._protocols import Backend, Bounded, Store
from ._types import Array, CacheView, Counts, Phase, Plan, Quota, Rows, Scored, Step
from .report import LayerReport, Report
from .selectors import TopK

__all__ = ["Listener", "Pass", "Session"]

Listener = Callable[[int, CacheView, Plan, Step], None]
HeadCounts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]  # [B, H]


@final
@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass over the whole model: what its layers share.

    Attributes:
        start: tokens (padding included) before this pass.
        positions: int64 [B, Q], arrival indices.
        valid: bool [B, Q]; False for padding.
        tokens: int64 [B] (numpy), valid tokens of this pass.
        columns: scalar columns [B, Q] known on arrival.
    """

    start: int
    positions: Array
    valid: Array
    tokens: Counts
    columns: Mapping[str, Array]

    @property
    def length(self) -> int:
        """Q."""
        return int(self.positions.shape[-1])


@dataclass(slots=True)
class _Layer:
    """Host-side knowledge of one layer."""

    store: Store
    length: int = 0  # logical: tokens that have passed, padding included
    seen: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    prompt: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    prompt_kept: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    held: HeadCounts = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    slots: int = 0  # rows in the view, valid or not
    limit: int | None = None  # slots that suffice while decoding, where the schedule is bounded
    row_bytes: int = 0  # one row of one head
    left: Counts = field(default_factory=lambda: np.zeros(0, np.int64))  # rows that plans took away
    exceeded: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    merged: Any = None  # [B], of those that left; stays on the device until somebody asks


@final
class Session:
    """The tables of one request under one policy.

    Args:
        policy: shared freely; never changed.
        ops: the backend.
        num_layers: layers under the policy.
        prompt_length: tokens (padding included) of the first prompt. Known, a prompt fed in chunks is compacted once,
            when it is complete; unknown, every pass of several tokens is a whole prompt.
        check: verify every stage's answer (NaN, shapes, plans); on an accelerator each check waits for the device.
        listen: called with every plan before it is carried out.
    """

    def __init__(
        self,
        policy: Policy,
        ops: Backend,
        num_layers: int,
        *,
        prompt_length: int = 0,
        check: bool = True,
        listen: Listener | None = None,
    ) -> None:
        self.policy, self.ops = policy, ops
        self._prompt_length, self._check, self._listen = prompt_length, check, listen
        self._layers = [_Layer(ops.store(index, num_layers)) for index in range(num_layers)]
        self._waiting: list[tuple[Scored, Step]] = []  # layers that a whole-model allocator still waits for

    def __len__(self) -> int:
        return len(self._layers)

    def length(self, layer: int = 0) -> int:
        """Tokens that have passed a layer, padding included: the next token's position."""
        return self._layers[layer].length

    @property
    def batch(self) -> int:
        """Batch rows; 0 before the first pass."""
        return len(self._layers[0].seen) if self._layers else 0

    def all_valid(self, layer: int) -> bool:
        """Whether every row of every head is a real one, so that attention needs no mask for holes or padding."""
        state = self._layers[layer]
        return bool(state.held.size == 0 or state.held.min() == state.slots)

    def append(self, layer: int, keys: Array, values: Array, now: Pass) -> CacheView:
        """Bring the new rows of a pass into a layer's table; returns the table to attend over.

        Raises:
            CacheError: if the batch size changed within the request.
        """
        state = self._layers[layer]
        batch, heads = int(keys.shape[0]), int(keys.shape[1])
        if state.length == 0:
            for name in ("seen", "prompt", "prompt_kept", "left", "exceeded"):
                setattr(state, name, np.zeros(batch, np.int64))
            state.held = np.zeros((batch, heads), np.int64)
            per_head = keys.shape[-1] + values.shape[-1]
            state.row_bytes = int(per_head) * int(keys.nbytes // max(1, int(np.prod(keys.shape))))
        elif len(state.seen) != batch:
            raise CacheError(
                f"this cache holds {len(state.seen)} batch rows and was given {batch}. Hint: make a new PolicyCache "
                f"for each request."
            )
        view = state.store.append(Rows(keys, values, now.positions, now.valid, now.columns), limit=state.limit)
        state.length += now.length
        state.seen = state.seen + now.tokens
        if self._phase(now) is Phase.PREFILL:
            state.prompt = state.prompt + now.tokens
        state.held = state.held + now.tokens[:, None]
        state.slots = view.shape[2]
        return view

    def advance(self, layer: int, queries: Array, scale: float, now: Pass) -> None:
        """After attention: observe, and plan if this pass completes a prompt or a token."""
        state = self._layers[layer]
        view = state.store.view()
        step = Step(
            phase=self._phase(now),
            seen=state.seen,
            prompt=state.prompt,
            prompt_kept=state.prompt_kept,
            queries=queries,
            query_positions=now.positions,
            query_valid=now.valid,
            scale=scale,
            ops=self.ops,
            row_bytes=state.row_bytes * state.held.size * len(self._layers),
            count_bias=self.policy.count_bias,
        )
        columns = _engine.observe(self.policy, view, step)
        if columns:
            state.store.observe(columns)
            view = view.with_columns(columns)
        if now.start + now.length < self._prompt_length:
            return  # a chunk of a prompt that goes on
        pipeline = self.policy.prefill if step.phase is Phase.PREFILL else self.policy.decode
        if pipeline is not None:
            self._run(pipeline, state, view, step)
        if step.phase is Phase.PREFILL:
            state.prompt_kept = state.held.max(axis=1)
            if self.policy.decode is not None and isinstance(self.policy.decode.schedule, Bounded):
                state.limit = self.policy.decode.schedule.limit(step) + 1

    def select_batch(self, index: Array) -> None:
        """Batch rows with all their state, in this order, repeats allowed (beam search)."""
        chosen = self.ops.host(index) if not isinstance(index, np.ndarray) else index
        for state in self._layers:
            if state.length:
                state.store.select_batch(index)
                for name in ("seen", "prompt", "prompt_kept", "held", "left", "exceeded"):
                    setattr(state, name, getattr(state, name)[chosen])
                if state.merged is not None:
                    state.merged = state.merged[index]

    def clear(self) -> None:
        """Start over as a new request."""
        for index, state in enumerate(self._layers):
            state.store.clear()
            self._layers[index] = _Layer(state.store)
        self._waiting = []

    def report(self) -> Report:
        """What happened so far."""
        first = self._layers[0] if self._layers else None
        return Report(
            policy=self.policy,
            backend=self.ops.name,
            tokens=tuple(first.seen.tolist()) if first else (),
            layers=tuple(self._layer_report(state) for state in self._layers),
        )

    def _layer_report(self, state: _Layer) -> LayerReport:
        kv_bytes, column_bytes = state.store.nbytes()
        merged = 0 if state.merged is None else int(self.ops.host(state.merged).sum())
        return LayerReport(
            rows=float(state.held.mean()) if state.held.size else 0.0,
            most=int(state.held.max(initial=0)),
            capacity=state.store.capacity,
            evicted=int(state.left.sum()) - merged,
            merged=merged,
            exceeded=int(state.exceeded.sum()),
            kv_bytes=kv_bytes,
            full_kv_bytes=state.row_bytes * state.held.size * state.length,
            column_bytes=column_bytes,
        )

    def _phase(self, now: Pass) -> Phase:
        prompt = now.start < self._prompt_length or now.start == 0 or now.length > 1
        return Phase.PREFILL if prompt else Phase.DECODE

    def _run(self, pipeline: Pipeline, state: _Layer, view: CacheView, step: Step) -> None:
        budget = _engine.budget_of(pipeline, step)
        if budget is None:
            return
        if not pipeline.allocate.whole_model:
            if np.any(state.held > budget[:, None]):
                scored = _engine.score(pipeline, view, step, check=self._check)
                (quota,) = _engine.allocate(pipeline, budget, [scored], step)
                self._carry_out(pipeline, state, scored, quota, step)
            return
        self._waiting.append((_engine.score(pipeline, view, step, check=self._check), step))
        if len(self._waiting) < len(self._layers):
            return
        waiting, self._waiting = self._waiting, []
        if all(np.all(other.held <= budget[:, None]) for other in self._layers):
            return
        quotas = _engine.allocate(pipeline, budget, [scored for scored, _ in waiting], step)
        for other, (scored, its_step), quota in zip(self._layers, waiting, quotas, strict=True):
            self._carry_out(pipeline, other, scored, quota, its_step)
            if step.phase is Phase.PREFILL:
                other.prompt_kept = other.held.max(axis=1)

    def _carry_out(self, pipeline: Pipeline, state: _Layer, scored: Scored, quota: Quota, step: Step) -> None:
        made = _engine.plan(pipeline, scored, quota, step, check=self._check)
        if self._listen is not None:
            self._listen(scored.view.layer, scored.view, made, step)
        kept = self._kept(pipeline, state, scored, made, quota)
        state.store.apply(made, int(kept.max()))
        if made.into is not None:
            xp = scored.view.xp
            folded = xp.sum(xp.astype(xp.any(made.into >= 0, axis=-1), xp.int64), axis=(1, 2))
            state.merged = folded if state.merged is None else state.merged + folded
        wanted = quota if isinstance(quota, np.ndarray) else self.ops.host(quota)
        state.left = state.left + (state.held - kept).sum(axis=1)
        state.exceeded = np.maximum(kept - wanted, 0).sum(axis=1)
        state.held = kept
        state.slots = state.store.view().shape[2]

    def _kept(self, pipeline: Pipeline, state: _Layer, scored: Scored, made: Plan, quota: Quota) -> HeadCounts:
        """Rows kept by each head: counted, or, unchecked, known in advance from a host quota and `TopK`."""
        if not self._check and isinstance(pipeline.select, TopK) and isinstance(quota, np.ndarray):
            known: HeadCounts = np.minimum(state.held, np.maximum(quota, pipeline.select.floor))
            return known
        xp = scored.view.xp
        return np.asarray(self.ops.host(xp.sum(xp.astype(made.keep, xp.int64), axis=-1)))
