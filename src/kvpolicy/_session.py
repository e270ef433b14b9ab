"""One request: the only mutable thing besides its stores.

Per layer a forward pass is two calls: `Session.append` brings the new rows in, the caller attends, and
`Session.advance` observes and, when the pass completes a prompt or a token, plans and compacts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np

from . import _engine
from ._check import check_count
from ._errors import CacheError
from ._heads import UNDIVIDED, Heads
from ._layer import Layer, why_settled
from ._pass import Pass
from ._planner import Listener, Planner
from ._policy import Pipeline, Policy
from ._protocols import Ahead, Attending, Backend, Bounded, Observer
from ._slots import in_slots, queries_in_slots
from ._steady import SteadyLayer
from ._steady_layers import check_steady, prepared, reported, resume, select_batch
from ._step import Phase, Queries, Step
from ._tentative import check_layerwise
from ._trial import Trial
from ._types import Array, CacheView, Rotate, Rows
from .report import Report

__all__ = ["Session"]


@final
class Session:
    """The tables of one request under one policy.

    Args:
        policy: shared freely; never changed.
        ops: the backend.
        num_layers: layers under the policy.
        prompt_length: tokens (padding included) of the first prompt. Known, a prompt fed in chunks is compacted once,
            when it is complete; unknown, every pass of several tokens is a whole prompt.
        check: verify every stage's answer (NaN, shapes, plans). What only the device can tell is asked for once a pass,
            or before anybody builds on it: an allocator, a listener, rows that fold.
        listen: called with every plan before it is carried out.
        rotate: turns rotary vectors by a number of positions, see `Step.rotate`.
        heads: how processes share the heads of every layer; each of them runs a session of its own, in step with the
            others. None: one process holds them all.

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
        heads: Heads | None = None,
    ) -> None:
        if policy.positions == "slots" and rotate is None:
            raise CacheError(
                "Policy(positions='slots') turns keys to their slot, which needs the model's rotary embedding; this "
                "session has none. Hint: use a model with plain rotary positions, or positions='original'."
            )
        self.policy, self.ops = policy, ops
        self.heads = UNDIVIDED if heads is None else heads
        self._prompt_length, self._rotate = prompt_length, rotate
        self._turn = rotate if policy.positions == "slots" else None
        self.attending = ops if isinstance(ops, Attending) else None
        self.wants_shares = _engine.goes_by_attention(policy.decode)  # of what rows receive while decoding
        self.wants_sums = any(isinstance(pipeline.score, Observer) for pipeline in self._pipelines)
        self._max_length = 0
        self.steady: list[SteadyLayer] = []  # while decoding so, see `hold_steady`
        self._layers = [self._new_layer(index, num_layers) for index in range(num_layers)]
        self._trial = Trial(policy, self._layers, ops)
        self._planner = Planner(policy, self._layers, ops, check=check, listen=listen, turn=self._turn)
        self._observers = {phase: _engine.observers_of(policy, phase) for phase in Phase}
        self._windows = {
            Phase.PREFILL: _engine.window_of(policy.prefill),
            Phase.DECODE: _engine.window_of(policy.decode),
        }

    def __len__(self) -> int:
        return len(self._layers)

    def length(self, layer: int = 0) -> int:
        """Tokens that have passed a layer, padding included: the next token's position."""
        return self.steady[layer].report()[1] if self.steady else self._layers[layer].length

    @property
    def batch(self) -> int:
        """Batch rows; 0 before the first pass."""
        return len(self._layers[0].seen) if self._layers else 0

    def all_valid(self, layer: int) -> bool:
        """Whether every row of every head is a real one, so that attention needs no mask for holes or padding."""
        state = self._layers[layer]
        return bool(state.held.size == 0 or self.heads.own(state.held).min() == state.store.slots)

    def append(self, layer: int, keys: Array, values: Array, now: Pass) -> CacheView:
        """Bring the new rows of a pass into a layer's table; returns the table to attend over.

        Raises:
            CacheError: if the batch size changed within the request; if tentative tokens still wait for `crop`; or if
                these are tentative, and the policy acts while decoding and not layer by layer, or they are several.
        """
        if now.tentative and self.policy.decode is not None:
            if now.length > 1:
                raise CacheError(
                    f"a tentative pass of {now.length} tokens, and the policy acts after every decoded token. "
                    f"Hint: one token a pass."
                )
            self._trial.of(layer).arrived.append((keys, values, now))
        elif layer in self._trial.tried:
            tried = self.length(layer) - self._trial.of(layer).before.length
            raise CacheError(
                f"{tried} tokens that may be taken back wait to hear which of them stay. Hint: crop() after a pass "
                f"that tries tokens, also if all of them stay."
            )
        self.resume()
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
        return queries_in_slots(queries, self._turn, self.heads.own(self._layers[layer].held), now)

    def advance(
        self,
        layer: int,
        queries: Array,
        scale: float,
        now: Pass,
        *,
        module: object = None,
        softcap: float | None = None,
        sinks: Array | None = None,
        shares: Array | None = None,
        log_sums: Array | None = None,
    ) -> None:
        """After attention: observe, and plan if this pass completes a prompt or a token.

        Args:
            layer: its number.
            queries: [B, Hq, Q, D], those that were attended with.
            scale: the softmax scale that the model itself used.
            now: the pass.
            module: the attention module, for stages that know the model.
            softcap: what the model caps its logits at, see `Step.softcap`.
            sinks: logits [Hq] that belong to no row, see `Step.sinks`.
            shares: what each row received, where the attention tells, see `Step.shares`.
            log_sums: what each softmax divides by, where the attention tells, see `Step.log_sums`.
        """
        state = self._layers[layer]
        view, state.view = state.view, None
        assert view is not None, "advance() follows append()"
        goes_on = now.start + now.length < self._prompt_length
        if now.tentative and layer in self._trial.tried:
            told = {"module": module, "softcap": softcap, "sinks": sinks}
            self._trial.of(layer).attended.append((queries, scale, told))
        step = self._step(layer, queries, scale, now, module, softcap, sinks)
        if shares is not None or log_sums is not None:
            step = replace(step, shares=shares, log_sums=log_sums)
        columns = _engine.observed_by(self._observers[step.phase], view, step)
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
                quota = _engine.ahead(decode.allocate, limit, view, step)
                state.limit = int(self.heads.own(quota).max()) + 1
            if self._max_length and layer == len(self._layers) - 1:
                steps = [self._step(n, queries, scale, now, None, None, None) for n in range(len(self._layers))]
                self.steady = prepared(self.policy, self._layers, steps, self._max_length)

    def hold_steady(self, max_length: int) -> None:
        """From the end of every prompt on, decode in tensors whose shapes and places never change (`steady`).

        Such a pass can be compiled, or recorded and replayed: no number of it comes back to the host. `append` and
        `advance` have no part in it; whatever else is asked of the session brings the rows back first.

        Args:
            max_length: tokens in all, padding included, for which room is made.

        Raises:
            CacheError: if tokens have passed, the backend has no such tables, or processes share the heads.
            PolicyError: if max_length is no positive integer, or the policy does not let the host know the tables to
                come; names the stage.
        """
        check_count("hold_steady", "max_length", max_length, least=1)
        if self._layers and self.length():
            raise CacheError(f"hold_steady() comes before the prompt, and {self.length()} tokens have passed.")
        check_steady(self.policy, self.ops, self.heads)
        self._max_length = max_length

    def resume(self) -> None:
        """Bring the rows back from tables that stay in place, if they are there."""
        steady, self.steady = self.steady, []
        if steady:
            resume(self._layers, steady, self.policy)

    def expect(self, prompt_length: int) -> None:
        """A further prompt is to come, and ends with this many tokens in all, padding and earlier ones included.

        It is compacted once, when it is complete; not announced, every pass of several tokens is a whole prompt.

        Raises:
            CacheError: if so many have passed already, or in the middle of a pass.
        """
        self.resume()
        present = self.length() if self._layers else 0
        if prompt_length <= present or any(state.length != present for state in self._layers):
            raise CacheError(
                f"expect({prompt_length}): {present} tokens have passed, and the end of a further prompt lies behind "
                f"them. Hint: count all tokens so far and the new ones, before the first of these passes."
            )
        self._prompt_length = prompt_length

    def select_batch(self, index: Array) -> None:
        """Batch rows with all their state, in this order, repeats allowed (beam search)."""
        chosen = self.ops.host(index) if not isinstance(index, np.ndarray) else index
        if self.steady and len(chosen) == self.batch:
            select_batch(self.steady, index)
        else:
            self.resume()
            self._settle(self.length())
        for state in self._layers:
            state.select_batch(index, chosen)

    def check_tentative(self) -> None:
        """Raise unless tentative passes may follow a prompt within one pass of the model, layer by layer.

        Raises:
            CacheError: names the stage that waits until every layer has attended.
        """
        check_layerwise(self.policy)

    def crop(self, length: int) -> None:
        """Go back to the first ``length`` tokens, padding included, exactly as if no more had come.

        Assisted decoding takes back what was guessed wrong. What a token does to other rows cannot be undone, so this
        is refused where one that is to go was part of a plan, was observed or remembered by a scorer, called rows back
        from the archive, or ends a prompt that a pipeline counts from. To go back to no token at all is `clear`, and
        always possible.

        Tokens of tentative passes can always go. They were run on copies of the layers: now the layers themselves take
        those that stay, one by one as if they had been decoded so, and only then plans are told to ``listen``.

        Raises:
            CacheError: if it would not be exact, in the middle of a pass, or if there are fewer tokens; nothing has
                changed then.
        """
        self.resume()
        present = self.length() if self._layers else 0
        if any(state.length != present or state.view is not None for state in self._layers):
            raise CacheError(f"crop({length}) in the middle of a pass: let every layer append and advance() first.")
        if not 0 <= length <= present:
            raise CacheError(f"crop({length}): {present} tokens have passed, so length must be in 0 .. {present}.")
        if length == 0:
            self.clear()
            return
        last = max(self._trial.before(), key=lambda state: state.settled)
        if length < last.settled:
            raise CacheError(
                f"crop({length}): {why_settled(last, self._pipelines)}, so the tokens up to {last.settled} cannot be "
                f"taken back. Hint: crop({last.settled}) or more, or clear() and give the first {length} tokens again."
            )
        self._settle(length)
        for state in self._layers:
            if length < state.length:
                state.crop(length, self.ops)

    def clear(self) -> None:
        """Start over as a new request."""
        for index, state in enumerate(self._layers):
            state.store.clear()
            if state.archive is not None:
                state.archive.clear()
            self._layers[index] = Layer(state.store, self.heads, state.archive)
        self._trial.tried.clear()
        self.steady = []
        self._planner.clear()

    def report(self) -> Report:
        """What happened so far."""
        layers = reported(self._layers, self.steady, self.ops)
        seen = (
            self._layers[0].seen + (self.length() - self._layers[0].length) if self._layers else np.zeros(0, np.int64)
        )
        return Report(policy=self.policy, backend=self.ops.name, tokens=tuple(seen.tolist()), layers=layers)

    @property
    def _pipelines(self) -> list[Pipeline]:
        return [pipeline for pipeline in (self.policy.prefill, self.policy.decode) if pipeline is not None]

    def _new_layer(self, index: int, num_layers: int) -> Layer:
        recalls = any(pipeline.recall is not None for pipeline in self._pipelines)
        archive = self.ops.store(index, num_layers, on_host=True) if recalls else None
        return Layer(self.ops.store(index, num_layers), self.heads, archive)

    def _phase(self, now: Pass) -> Phase:
        prompt = now.start < self._prompt_length or now.start == 0 or (now.length > 1 and not now.tentative)
        return Phase.PREFILL if prompt else Phase.DECODE

    def _step(
        self,
        layer: int,
        queries: Array,
        scale: float,
        now: Pass,
        module: object,
        softcap: float | None,
        sinks: Array | None,
    ) -> Step:
        state = self._layers[layer]
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
            held=self._trial.counts(layer, "held"),
            archived=self._trial.counts(layer, "archived"),
            prompt_quota=self._trial.counts(layer, "prompt_quota"),
            earlier=state.queries,
            rotate=self._rotate,
            module=module,
            length=state.length,
            query_reach=now.reach,
            softcap=softcap,
            sinks=sinks,
            heads=self.heads,
        )

    def _settle(self, length: int) -> None:
        """Of the tentative tokens those before ``length`` stay: the layers themselves take them, one after another."""
        tried = self._trial.end()
        for passes in zip(*(zip(one.arrived, one.attended, strict=True) for one in tried.values()), strict=True):
            for layer, ((keys, values, now), (queries, scale, told)) in zip(tried, passes, strict=True):
                if now.start < length:
                    settled = replace(now, tentative=False)
                    self.append(layer, keys, values, settled)
                    self.advance(layer, queries, scale, settled, **told)

    def _remembered(self, step: Step, goes_on: bool) -> Queries | None:
        """The queries that later passes will ask for; the rest of a prompt (``goes_on``) may be padding."""
        window = self._windows[Phase.DECODE]
        window = window if window > 1 else 0  # a decoded token is its own latest query
        if goes_on:
            window = max(window, self._windows[Phase.PREFILL])
        if window == 0:
            return None
        return step.latest(window).asked
