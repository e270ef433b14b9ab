"""Decoding in tensors whose shapes and places never change, so that a pass can be compiled, or recorded and replayed.

A session prepares it when its prompt is complete: each layer's rows move to a table with room for all that the schedule
will allow, and what the schedule will allow is followed in advance, since it goes by counts that the host knows. What
is left of a pass is arithmetic on the device: the same stages look at the table and answer with the same plan, and no
number comes back to the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final, runtime_checkable

import numpy as np

from . import _engine
from ._errors import CacheError, PlanError, PolicyError
from ._forecast import Forecast, budgets_ahead, check_foreseeable, forecast
from ._heads import Heads
from ._layer import Layer
from ._policy import Pipeline, Policy
from ._protocols import Attending, Backend
from ._tentative import Untold
from ._types import Array, CacheView, Column, Counts, HeadCounts, Phase, Plan, Step
from .report import LayerReport

__all__ = [
    "Clock",
    "SteadyBackend",
    "SteadyLayer",
    "Table",
    "check_steady",
    "prepared",
    "reported",
    "resume",
    "select_batch",
]


class Table(Protocol):
    """The rows of one layer, in place."""

    def put(self, keys: Array, values: Array) -> CacheView:
        """The next row's key and value, [B, H, 1, D]; returns the table to attend over."""
        ...

    def apply(self, columns: Mapping[str, Column], plan: Plan | None, surplus: int, position: Array) -> None:
        """Columns that were observed, then a plan; the row after these arrives at ``position``."""
        ...

    def rows(self) -> CacheView:
        """The table as it is between two tokens."""
        ...

    def select_batch(self, index: Array) -> None:
        """As many batch rows as there are, in this order, in place."""
        ...

    def nbytes(self) -> tuple[int, int]:
        """Bytes of the tensors held: keys and values; all others."""
        ...

    @property
    def capacity(self) -> float:
        """Slots per head, on average."""
        ...

    @property
    def held(self) -> Array:
        """int64 [B, H]: rows of each head."""
        ...


@runtime_checkable
class SteadyBackend(Backend, Protocol):
    """Second face of a backend whose tables can stay in place."""

    def in_place(self, data: np.ndarray[Any, Any], /, *, device: Any) -> Array:
        """A copy on a device, which a recorded pass may write to."""
        ...

    def steady_table(self, view: CacheView, room: HeadCounts, position: int, /) -> Table:
        """A table of these rows, with room [B, H] (numpy) for those to come, the first of them at ``position``."""
        ...


@final
@dataclass(slots=True)
class Clock:
    """What all layers know of the pass under way, on the device.

    Attributes:
        passed: int64 [1], tokens before this pass, padding included: the arrival index of its token.
        begun: tokens before the first pass of this kind.
        padding: int64 [B], padding that has passed.
    """

    passed: Array
    begun: int
    padding: Array


@final
class SteadyLayer:
    """One layer of a session while it decodes so.

    Args:
        policy: its decode pipeline observes and plans.
        table: the rows.
        coming: what the schedule will allow.
        quotas: the same on the device, int64 [T, B, H]; None: nobody has to leave.
        clock: shared by all layers.
        step: of the latest pass, for what no longer changes; its counts are on the device.

    Attributes:
        ticks: whether a pass is over for the clock when this layer is through with it.
    """

    def __init__(
        self,
        policy: Policy,
        table: Table,
        coming: Forecast,
        quotas: Array | None,
        clock: Clock,
        step: Step,
    ) -> None:
        self.policy, self.table, self.coming, self.quotas = policy, table, coming, quotas
        self.clock, self.ticks = clock, False
        self.attending = step.ops if isinstance(step.ops, Attending) else None
        self.wants_shares = _engine.goes_by_attention(policy.decode)
        self.ops: Backend = step.ops
        self._heads: Heads = step.heads
        self.prompt, self.prompt_kept, self._prompt_quota = step.prompt, step.prompt_kept, step.prompt_quota
        self._row_bytes, self._rotate = step.row_bytes, step.rotate
        unknown: Any = Untold(
            f"a stage looks at the rows that layers hold, which a compiled pass does not know. {_PLAIN}"
        )
        self._unknown = (unknown,) * len(step.held)

    def put(self, keys: Array, values: Array) -> CacheView:
        """The key and value [B, H, 1, D] of the pass under way; returns the table to attend over."""
        return self.table.put(keys, values)

    def step(
        self,
        queries: Array,
        scale: float,
        *,
        module: object = None,
        softcap: float | None = None,
        sinks: Array | None = None,
        shares: Array | None = None,
    ) -> Step:
        """What the pass under way does, as `Session.advance` is told it; counts are arrays of the device."""
        clock, passed = self.clock, self.clock.passed
        positions = passed + 0 * clock.padding[:, None]
        return Step(
            phase=Phase.DECODE,
            seen=passed + 1 - clock.padding,
            prompt=self.prompt,
            prompt_kept=self.prompt_kept,
            queries=queries,
            query_positions=positions,
            query_valid=positions >= 0,
            scale=scale,
            ops=self.ops,
            row_bytes=self._row_bytes,
            count_bias=self.policy.count_bias,
            held=self._unknown,
            prompt_quota=self._prompt_quota,
            rotate=self._rotate,
            module=module,
            length=passed + 1,
            softcap=softcap,
            sinks=sinks,
            archived=self._unknown,
            heads=self._heads,
            surplus=self.coming.surplus,
            shares=shares,
        )

    def advance(self, view: CacheView, step: Step) -> None:
        """After attention: observe, plan, and make the slot of the next token ready."""
        passed = self.clock.passed
        columns = _engine.observe(self.policy, view, step)
        for name in columns:
            if name not in view.columns:
                raise PlanError(f"layer {view.layer}: the column {name!r} is new while decoding compiled. {_HINT}")
        plan = self._plan(view.with_columns(columns), step) if self.coming.surplus else None
        self.table.apply(columns, plan, self.coming.surplus, passed + 1)
        if self.ticks:
            passed.add_(1)

    def _plan(self, view: CacheView, step: Step) -> Plan:
        pipeline = self.policy.decode
        assert pipeline is not None
        assert self.quotas is not None
        scored = _engine.score(pipeline, view, step, check=False)
        turn = (self.clock.passed - self.clock.begun).clip(max=self.quotas.shape[0] - 1)
        quota = self.quotas.index_select(0, turn)[0]
        return _engine.plan(pipeline, scored, quota, step, check=False, alike=view.alike)

    def report(self) -> tuple[HeadCounts, int, tuple[int, int]]:
        """Rows of each head, [B, H] (numpy), tokens that have passed, and bytes; waits for the device."""
        host = self.ops.host
        return np.asarray(host(self.table.held)), int(host(self.clock.passed)[0]), self.table.nbytes()


def check_steady(policy: Policy, ops: Backend, heads: Heads) -> None:
    """Raise unless a session may decode so.

    Raises:
        PolicyError: if the policy does not let the host know the tables to come; names the stage.
        CacheError: if the backend cannot, or several processes share the heads.
    """
    if not isinstance(ops, SteadyBackend):
        raise CacheError(f"backend={ops.name!r} has no tables for compiled decoding. Hint: backend='torch'.")
    if heads.parts > 1:
        raise CacheError(f"compiled decoding with heads shared by {heads.parts} processes is not served yet. {_PLAIN}")
    if policy.positions == "slots":
        raise PolicyError(f"positions='slots' turns every key at every token, which is not compiled yet. {_PLAIN}")
    check_foreseeable(policy.decode)


def prepared(policy: Policy, layers: Sequence[Layer], steps: Sequence[Step], max_length: int) -> list[SteadyLayer]:
    """Move the rows of all layers to tables with room for the tokens up to ``max_length``.

    ``steps`` holds the latest `Step` of each layer.

    Raises:
        CacheError: if the prompt leaves no room for a token.
    """
    begun, ops = layers[0].length, steps[0].ops
    assert isinstance(ops, SteadyBackend)
    if max_length <= begun:
        raise CacheError(
            f"max_length={max_length}: the prompt has {begun} tokens with its padding, and after it there is no room "
            f"for another. Hint: max_length is the prompt and all tokens to come."
        )
    sent: dict[tuple[Any, ...], Array] = {}
    clocks: dict[Any, Clock] = {}
    made: list[SteadyLayer] = []

    def on(device: Any, counts: HeadCounts) -> Array:
        """Equal counts are there once: schedules are mostly the same for all layers."""
        key = (counts.shape, counts.tobytes(), device)
        if key not in sent:
            sent[key] = ops.in_place(counts, device=device)
        return sent[key]

    followed: dict[tuple[Any, ...], list[tuple[Step, Counts | None]]] = {}

    def coming_to(index: int, state: Layer, step: Step) -> Forecast:
        if policy.decode is None:
            return Forecast(None, state.held + (max_length - begun), 0)
        counts = (step.seen, step.prompt, step.prompt_kept)
        key = (step.row_bytes, *(count.tobytes() for count in counts))
        if key not in followed:
            followed[key] = budgets_ahead(policy.decode, step, max_length - begun)
        return forecast(policy.decode, followed[key], state.held, index, len(layers))

    for index, (state, step) in enumerate(zip(layers, steps, strict=True)):
        coming = coming_to(index, state, step)
        view = state.store.view()
        device = view.positions.device
        if device not in clocks:
            clocks[device] = Clock(ops.in_place(np.asarray([begun]), device=device), begun, on(device, step.padding))
        view = ops.compact(view, Plan(keep=view.valid), int(state.held.max()))
        state.store.clear()  # layer by layer: the rows are never all there twice
        state.alike = state.alike and _stay_alike(policy.decode, coming)
        table = ops.steady_table(replace(view, alike=state.alike), coming.room, begun)
        quotas = None if coming.quotas is None else on(device, coming.quotas)
        told = replace(step, prompt=on(device, step.prompt), prompt_kept=on(device, step.prompt_kept))
        made.append(SteadyLayer(policy, table, coming, quotas, clocks[device], told))
    for layer in {layer.clock.passed.device: layer for layer in made}.values():  # the last one on each device
        layer.ticks = True
    return made


def _stay_alike(pipeline: Pipeline | None, coming: Forecast) -> bool:
    """Whether heads that hold the same tokens will go on to."""
    quotas = coming.quotas
    if pipeline is None or quotas is None or not coming.surplus:
        return True
    return _engine.alike_heads(pipeline) and bool((quotas == quotas[..., :1]).all())


def select_batch(steady: Sequence[SteadyLayer], index: Array) -> None:
    """As many batch rows as there are, in this order, in place."""
    counted: dict[int, tuple[Any, int]] = {}  # layers share what is equal
    for layer in steady:
        for counts in (layer.clock.padding, layer.prompt, layer.prompt_kept):
            counted[id(counts)] = counts, 0
        if layer.quotas is not None:
            counted[id(layer.quotas)] = layer.quotas, 1
    for counts, axis in counted.values():
        counts.copy_(counts.index_select(axis, index.to(counts.device)))
    for layer in steady:
        layer.table.select_batch(index)


def resume(layers: Sequence[Layer], steady: Sequence[SteadyLayer], policy: Policy) -> None:
    """Bring the rows back to the stores, and the counts to the host."""
    for state, layer in zip(layers, steady, strict=True):
        held, passed, _ = layer.report()
        rows, ops = layer.table.rows(), layer.ops
        tokens = passed - state.length
        state.store.join(ops.compact(rows, Plan(keep=rows.valid), int(held.max())), held)
        view = state.store.view()
        state.store.apply(Plan(keep=view.valid, registers=rows.registers), held)
        state.left = state.left + (state.held + tokens - held).sum(axis=1)
        state.length, state.seen, state.held = passed, state.seen + tokens, held
        if tokens:
            state.phase = Phase.DECODE
            if policy.decode is not None:
                state.settle("planned")


def reported(layers: Sequence[Layer], steady: Sequence[SteadyLayer], ops: Backend) -> tuple[LayerReport, ...]:
    """What happened so far, also where the rows are in steady tables."""
    if not steady:
        return tuple(state.report(ops) for state in layers)
    made = []
    for state, layer in zip(layers, steady, strict=True):
        held, passed, (kv_bytes, column_bytes) = layer.report()
        left = (state.held + passed - state.length - held).sum()
        known = state.report(ops)
        made.append(
            replace(
                known,
                rows=float(held.mean()),
                most=int(held.max()),
                capacity=layer.table.capacity,
                evicted=known.evicted + int(left),
                kv_bytes=kv_bytes,
                full_kv_bytes=state.row_bytes * held.size * passed,
                column_bytes=column_bytes,
            )
        )
    return tuple(made)


_HINT = "Hint: observe it in prompts, too."
_PLAIN = "Hint: decode without compile_decode."
