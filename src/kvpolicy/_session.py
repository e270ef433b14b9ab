"""One request: the only mutable thing besides its stores.

Per layer a forward pass is two calls: `Session.append` brings the new rows in, the caller attends, and
`Session.advance` observes and, when the pass completes a prompt or a token, plans and compacts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from . import _engine
from ._errors import CacheError
from ._layer import Layer, why_settled
from ._planner import Listener, Planner, in_slots
from ._policy import Pipeline, Policy
from ._protocols import Ahead, Backend, Bounded
from ._types import Array, CacheView, Counts, Phase, Queries, Rotate, Rows, Step
from .report import Report

__all__ = ["Listener", "Pass", "Session"]


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
        rotate: turns rotary vectors by a number of positions, see `Step.rotate`.

    Raises:
        CacheError: if the policy re-indexes positions and there is no ``rotate``.
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
        rotate: Rotate | None = None,
    ) -> None:
        if policy.positions == "slots" and rotate is None:
            raise CacheError(
                "Policy(positions='slots') turns keys to their slot, which needs the model's rotary embedding; this "
                "session has none. Hint: use a model with plain rotary positions, or positions='original'."
            )
        self.policy, self.ops = policy, ops
        self._prompt_length, self._rotate = prompt_length, rotate
        self._turn = rotate if policy.positions == "slots" else None
        self._layers = [self._new_layer(index, num_layers) for index in range(num_layers)]
        self._planner = Planner(self._layers, ops, check=check, listen=listen, turn=self._turn)
        self._windows = {
            Phase.PREFILL: _engine.window_of(policy.prefill),
            Phase.DECODE: _engine.window_of(policy.decode),
        }

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
        return bool(state.held.size == 0 or state.held.min() == state.store.slots)

    def append(self, layer: int, keys: Array, values: Array, now: Pass) -> CacheView:
        """Bring the new rows of a pass into a layer's table; returns the table to attend over.

        Raises:
            CacheError: if the batch size changed within the request.
        """
        state = self._layers[layer]
        state.begin(keys, values)
        state.phase = self._phase(now)
        view = state.append(Rows(keys, values, now.positions, now.valid, now.columns), now.tokens)
        if state.phase is Phase.PREFILL:
            state.prompt = state.prompt + now.tokens
        state.view = in_slots(view, self._turn, self.ops)
        return state.view

    def turned(self, layer: int, queries: Array, now: Pass) -> Array:
        """The queries [B, Hq, Q, D] to attend with: turned to their slots where the policy re-indexes positions."""
        if self._turn is None:
            return queries
        state = self._layers[layer]
        assert state.view is not None
        xp, device = state.view.xp, now.positions.device
        valid = xp.astype(now.valid, xp.int64)
        behind = xp.sum(valid, axis=-1, keepdims=True) - xp.cumulative_sum(valid, axis=-1)  # later tokens of this pass
        held = xp.asarray(state.held, dtype=xp.int64, device=device)
        slot = held[:, :, None] - 1 - behind[:, None, :]
        turn = xp.where(now.valid[:, None, :], slot - now.positions[:, None, :], xp.zeros_like(slot))
        return self._turn(queries, xp.repeat(turn, queries.shape[1] // turn.shape[1], axis=1))

    def advance(self, layer: int, queries: Array, scale: float, now: Pass, *, module: object = None) -> None:
        """After attention: observe, and plan if this pass completes a prompt or a token.

        Args:
            layer: its number.
            queries: [B, Hq, Q, D], those that were attended with.
            scale: the softmax scale that the model itself used.
            now: the pass.
            module: the attention module, for stages that know the model.
        """
        state = self._layers[layer]
        view, state.view = state.view, None
        assert view is not None, "advance() follows append()"
        goes_on = now.start + now.length < self._prompt_length
        step = self._step(state, queries, scale, now, module)
        columns = _engine.observe(self.policy, view, step)
        if columns:
            state.store.observe(columns)
            view = view.with_columns(columns)
            state.settle("observed")
        state.queries = self._remembered(step, goes_on)
        if state.queries is not None:
            state.settle("windowed")
        if goes_on:
            return  # a chunk of a prompt
        pipeline = self.policy.prefill if step.phase is Phase.PREFILL else self.policy.decode
        if pipeline is not None:
            self._planner.run(pipeline, state, view, step)
        if step.phase is Phase.PREFILL:
            state.prompt_kept = state.held
            if self._pipelines:
                state.settle("counted")
            decode = self.policy.decode
            if decode is not None and isinstance(decode.schedule, Bounded) and isinstance(decode.allocate, Ahead):
                limit = np.broadcast_to(np.asarray(decode.schedule.limit(step), np.int64), step.seen.shape)
                state.limit = int(_engine.ahead(decode.allocate, limit, view, step).max()) + 1

    def select_batch(self, index: Array) -> None:
        """Batch rows with all their state, in this order, repeats allowed (beam search)."""
        chosen = self.ops.host(index) if not isinstance(index, np.ndarray) else index
        for state in self._layers:
            state.select_batch(index, chosen)

    def crop(self, length: int) -> None:
        """Go back to the first ``length`` tokens, padding included, exactly as if no more had come.

        Assisted decoding takes back what was guessed wrong. What a token does to other rows cannot be undone, so this
        is refused where one that is to go was part of a plan, was observed or remembered by a scorer, called rows back
        from the archive, or ends a prompt that a pipeline counts from. To go back to no token at all is `clear`, and
        always possible.

        Raises:
            CacheError: if it would not be exact, in the middle of a pass, or if there are fewer tokens; nothing has
                changed then.
        """
        present = self.length() if self._layers else 0
        if any(state.length != present or state.view is not None for state in self._layers):
            raise CacheError(f"crop({length}) in the middle of a pass: let every layer append and advance() first.")
        if not 0 <= length <= present:
            raise CacheError(f"crop({length}): {present} tokens have passed, so length must be in 0 .. {present}.")
        if length == present:
            return
        if length == 0:
            self.clear()
            return
        last = max(self._layers, key=lambda state: state.settled)
        if length < last.settled:
            raise CacheError(
                f"crop({length}): {why_settled(last, self._pipelines)}, so the tokens up to {last.settled} cannot be "
                f"taken back. Hint: crop({last.settled}) or more, or clear() and give the first {length} tokens again."
            )
        for state in self._layers:
            state.crop(length, self.ops)

    def clear(self) -> None:
        """Start over as a new request."""
        for index, state in enumerate(self._layers):
            state.store.clear()
            if state.archive is not None:
                state.archive.clear()
            self._layers[index] = Layer(state.store, state.archive)
        self._planner.clear()

    def report(self) -> Report:
        """What happened so far."""
        first = self._layers[0] if self._layers else None
        return Report(
            policy=self.policy,
            backend=self.ops.name,
            tokens=tuple(first.seen.tolist()) if first else (),
            layers=tuple(state.report(self.ops) for state in self._layers),
        )

    @property
    def _pipelines(self) -> list[Pipeline]:
        return [pipeline for pipeline in (self.policy.prefill, self.policy.decode) if pipeline is not None]

    def _new_layer(self, index: int, num_layers: int) -> Layer:
        recalls = any(pipeline.recall is not None for pipeline in self._pipelines)
        archive = self.ops.store(index, num_layers, on_host=True) if recalls else None
        return Layer(self.ops.store(index, num_layers), archive)

    def _phase(self, now: Pass) -> Phase:
        prompt = now.start < self._prompt_length or now.start == 0 or now.length > 1
        return Phase.PREFILL if prompt else Phase.DECODE

    def _step(self, state: Layer, queries: Array, scale: float, now: Pass, module: object) -> Step:
        return Step(
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
            held=tuple(other.held if other.length else np.zeros_like(state.held) for other in self._layers),
            prompt_quota=tuple(
                other.prompt_quota if other.length else np.zeros_like(state.held) for other in self._layers
            ),
            earlier=state.queries,
            rotate=self._rotate,
            module=module,
            length=state.length,
        )

    def _remembered(self, step: Step, goes_on: bool) -> Queries | None:
        """The queries that later passes will ask for; the rest of a prompt (``goes_on``) may be padding."""
        window = self._windows[Phase.DECODE]
        window = window if window > 1 else 0  # a decoded token is its own latest query
        if goes_on:
            window = max(window, self._windows[Phase.PREFILL])
        if window == 0:
            return None
        last = step.latest(window)
        return Queries(last.queries, last.query_positions, last.query_valid)
