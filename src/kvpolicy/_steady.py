"""Decoding in tensors whose shapes and places never change, so that a pass can be compiled, or recorded and replayed.

A pass is arithmetic on the device: the same stages look at the table and answer with the same plan as ever, and no
number comes back to the host. `_steady_layers` moves the rows there, and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np

from . import _engine
from ._errors import PlanError
from ._forecast import Forecast
from ._heads import Heads
from ._plan import Plan
from ._policy import Policy
from ._protocols import Attending, Backend
from ._step import Phase, Step
from ._tentative import Untold
from ._types import Array, CacheView, Column, HeadCounts

__all__ = ["PLAIN", "Clock", "SteadyBackend", "SteadyLayer", "Table"]

PLAIN = "Hint: decode without compile_decode."


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
            f"a stage looks at the rows that layers hold, which a compiled pass does not know. {PLAIN}"
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


_HINT = "Hint: observe it in prompts, too."
