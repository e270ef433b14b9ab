"""All layers of a session in tables that stay in place: moved there, put in another order, counted, brought back.

A session moves them when its prompt is complete: each layer's rows go to a table with room for all that the schedule
will allow, and what the schedule will allow is followed in advance, since it goes by counts that the host knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ._alike import alike_heads
from ._errors import CacheError, PolicyError
from ._forecast import Forecast, budgets_ahead, check_foreseeable, forecast
from ._heads import Heads
from ._layer import Layer
from ._plan import Plan
from ._policy import Pipeline, Policy
from ._protocols import Backend
from ._steady import PLAIN, Clock, SteadyBackend, SteadyLayer
from ._step import Phase, Step
from ._types import Array, Counts, HeadCounts
from .report import LayerReport

__all__ = ["check_steady", "prepared", "reported", "resume", "select_batch"]


def check_steady(policy: Policy, ops: Backend, heads: Heads) -> None:
    """Raise unless a session may decode so.

    Raises:
        PolicyError: if the policy does not let the host know the tables to come; names the stage.
        CacheError: if the backend cannot, or several processes share the heads.
    """
    if not isinstance(ops, SteadyBackend):
        raise CacheError(f"backend={ops.name!r} has no tables for compiled decoding. Hint: backend='torch'.")
    if heads.parts > 1:
        raise CacheError(f"compiled decoding with heads shared by {heads.parts} processes is not served yet. {PLAIN}")
    if policy.positions == "slots":
        raise PolicyError(f"positions='slots' turns every key at every token, which is not compiled yet. {PLAIN}")
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
    return alike_heads(pipeline) and bool((quotas == quotas[..., :1]).all())


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
