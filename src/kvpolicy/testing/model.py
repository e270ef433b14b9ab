"""The slow, obvious model of a request: what a `Session` has to do, written down without a thought for speed.

Every head is a plain list of rows. A pass appends to the lists, attends, observes and, where a schedule says so, plans
and makes new lists. There is no storage, there are no slots and nothing happens in place. It shares no code with the
engine; the stages that it calls are the policy's own, because they are what the policy means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from .._errors import CacheError
from .._plan import Scored
from .._policy import Pipeline, Policy
from .._protocols import Ahead, Backend, CrossLayer, ImportanceScorer, Observer, Recaller, Windowed
from .._step import Phase, Step
from .._types import EMPTY, CacheView, Rotate
from ._numbers import Arr
from ._rows import Row, Sheet, attend, carry_out, laid_out
from ._told import Now, SlowLayer, Told

__all__ = ["SlowCache"]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A layer that may have to be planned, as it was when it had attended."""

    layer: SlowLayer
    sheet: Sheet
    view: CacheView
    step: Step
    quota: Arr | None  # where the allocator says it ahead


@final
class SlowCache:
    """The model of one request under one policy.

    Args:
        policy: whose stages are called.
        layers: how many there are.
        ops: the backend whose arrays the stages are given.
        device: where.
        dtype: of keys and values: ``"float64"``, ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        prompt_length: tokens (padding included) of the first prompt; 0: every pass of several tokens is a whole one.
        rotate: turns rotary vectors, as `Step.rotate`.
        order: lays rows out in slots at random. Rows carry no order, so each is as right as another.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        layers: int,
        ops: Backend,
        device: Any = None,
        dtype: str = "float64",
        prompt_length: int = 0,
        rotate: Rotate | None = None,
        order: np.random.Generator | None = None,
    ) -> None:
        self.policy, self.ops, self.dtype, self.prompt_length = policy, ops, dtype, prompt_length
        self._count, self._order = layers, order
        self._told = Told(policy, layers, ops, device, dtype, rotate)
        self.reset()

    def reset(self) -> None:
        """A new request."""
        self.length = 0  # tokens that have passed, padding included
        self.settled = 0  # of them, those that cannot be taken back
        self.layers: list[SlowLayer] = []
        self._waiting: list[_Entry] = []

    # A pass ----------------------------------------------------------------------------------------------------------

    def forward(
        self,
        keys: Arr,
        values: Arr,
        queries: Arr,
        valid: Arr,
        *,
        scale: float,
        columns: Mapping[str, Arr] = EMPTY,
    ) -> Arr:
        """One pass through all layers; vectors are float64, numbers that the dtype can hold.

        Args:
            keys: [L, B, H, Q, D].
            values: [L, B, H, Q, Dv].
            queries: [L, B, Hq, Q, D].
            valid: bool [B, Q]; False for padding.
            scale: softmax scale.
            columns: scalar columns [B, Q] known on arrival.

        Returns:
            What attention gives, float64 [L, B, Hq, Q, Dv].
        """
        start, (batch, count) = self.length, valid.shape
        if start == 0:
            sizes = batch, keys.shape[2], (keys.shape[-1], values.shape[-1])
            self.layers = [SlowLayer.empty(*sizes) for _ in range(self._count)]
        prompt = start == 0 or start < self.prompt_length or count > 1
        now = Now(
            phase=Phase.PREFILL if prompt else Phase.DECODE,
            complete=start + count >= self.prompt_length,
            start=start,
            valid=valid,
            places=np.broadcast_to(np.arange(start, start + count), valid.shape),
            scale=scale,
        )
        self.length += count
        outputs = [
            self._attend(number, keys[number], values[number], queries[number], columns, now)
            for number in range(self._count)
        ]
        if prompt and now.complete:
            for layer in self.layers:
                layer.prompt_kept = layer.table.held
            if self.policy.prefill is not None or self.policy.decode is not None:
                self.settled = self.length  # it is counted from here
        return np.stack(outputs)

    def _attend(self, number: int, keys: Arr, values: Arr, queries: Arr, columns: Mapping[str, Arr], now: Now) -> Arr:
        """Append, attend, observe; then plan, if the pass completes a prompt or a token."""
        layer, tokens = self.layers[number], now.valid.sum(axis=1)
        _arrive(layer, keys, values, columns, now)
        layer.seen = layer.seen + tokens
        if now.phase is Phase.PREFILL:
            layer.prompt = layer.prompt + tokens
        sheet = laid_out(layer.table, now.start, now.valid.shape[1], self._order)
        view, asking = self._told.view(number, sheet), self._told.queries(layer, queries, now)
        heard = np.asarray(self.ops.host(asking), np.float64)
        output = attend(view, heard, now.places, now.scale, self.ops, count_bias=self.policy.count_bias)
        step = self._told.step(self.layers, number, asking, now)
        view = self._observe(layer, sheet, view, step)
        self._remember(layer, heard, now)
        pipeline = self.policy.prefill if now.phase is Phase.PREFILL else self.policy.decode
        if pipeline is not None and now.complete:
            self._act(pipeline, number, sheet, view, step)
        return output

    def _observe(self, layer: SlowLayer, sheet: Sheet, view: CacheView, step: Step) -> CacheView:
        """Scorers note what they saw: that of decoding always, that of prompts in prompts; all see the same table."""
        scorers: list[ImportanceScorer] = []
        for pipeline in (self.policy.prefill, self.policy.decode):
            looks = pipeline is self.policy.decode or step.phase is Phase.PREFILL
            if pipeline is not None and looks and pipeline.score not in scorers:
                scorers.append(pipeline.score)
        seen = [scorer.observe(view, step) for scorer in scorers if isinstance(scorer, Observer)]
        columns = {name: column for observed in seen for name, column in observed.items()}
        for name, column in columns.items():
            data = self.ops.host(column.data)
            layer.table.kinds[name] = (data.dtype, column.on_merge)
            for at in np.argwhere(sheet.valid).tolist():
                row = sheet.rows[at[0]][at[1]][at[2]]
                assert row is not None
                row.columns[name] = float(data[tuple(at)])
        if columns:
            self.settled = self.length
        return view.with_columns(columns)

    def _remember(self, layer: SlowLayer, queries: Arr, now: Now) -> None:
        """The latest queries that are not padding, as many as a scorer will ask for.

        Decoding looks back only if it looks at several; a prompt only as long as it is not complete.
        """
        decode, prefill = (
            pipeline.score.window if pipeline is not None and isinstance(pipeline.score, Windowed) else 0
            for pipeline in (self.policy.decode, self.policy.prefill)
        )
        most = max(decode if decode > 1 else 0, 0 if now.complete else prefill)
        for b, known in enumerate(layer.asked):
            known += [(now.start + t, queries[b, :, t]) for t in np.flatnonzero(now.valid[b]).tolist()]
            del known[: max(0, len(known) - most)]
        if most:
            self.settled = self.length

    # A plan ----------------------------------------------------------------------------------------------------------

    def _act(self, pipeline: Pipeline, number: int, sheet: Sheet, view: CacheView, step: Step) -> None:
        """What the schedule gives, and what follows from it; layers that depend on each other wait for the last."""
        layer, allocate = self.layers[number], pipeline.allocate
        given = pipeline.schedule.budget(step)
        if given is None:
            return
        budget = np.broadcast_to(np.asarray(given, np.int64), step.seen.shape)
        if pipeline.recall is not None and layer.archive.held.any():
            sheet, view, step = self._recall(pipeline.recall, number, step)
        quota = None
        if isinstance(allocate, Ahead) and not allocate.whole_model:
            quota = allocate.ahead(budget, number, self._count, view.shape[1], step)
        if step.phase is Phase.PREFILL:
            layer.prompt_quota = np.repeat(budget[:, None], view.shape[1], axis=1) if quota is None else quota
        self._waiting.append(_Entry(layer, sheet, view, step, quota))
        if number == self._count - 1 or not (allocate.whole_model or isinstance(pipeline.score, CrossLayer)):
            entries, self._waiting = self._waiting, []
            self._plan(pipeline, entries, budget)

    def _recall(self, recaller: Recaller, number: int, step: Step) -> tuple[Sheet, CacheView, Step]:
        """Rows come back from the archive, to compete for their place; the table and the step as they are then."""
        layer = self.layers[number]
        before, archive = layer.table.held, laid_out(layer.archive, order=self._order)
        mask = self.ops.host(recaller.recall(archive.view(self._told.array, self.dtype, number, self._count), step))
        layer.archive.heads, back = (
            [
                [[row for s, row in enumerate(line) if row and mask[b, h, s] == comes] for h, line in enumerate(heads)]
                for b, heads in enumerate(archive.rows)
            ]
            for comes in (False, True)
        )
        layer.archive.add([[[] for _ in heads] for heads in back])  # in order again
        layer.table.add(back)
        by = layer.table.held - before
        layer.left, layer.recalled = layer.left - by.sum(axis=1), layer.recalled + int(by.sum())
        if by.any():
            self.settled = self.length
        queries = step.queries
        if self.policy.positions == "slots":  # they stand behind the rows that came back
            turn = np.repeat(by, queries.shape[1] // by.shape[1], axis=1)[..., None]
            queries = self._told.turned(queries, np.broadcast_to(turn, queries.shape[:3]))
        held = tuple(other.table.held for other in self.layers)
        sheet = laid_out(layer.table, order=self._order)
        return sheet, self._told.view(number, sheet), replace(step, queries=queries, held=held, whole_pass=False)

    def _plan(self, pipeline: Pipeline, entries: Sequence[_Entry], budget: Arr) -> None:
        """Score and allocate, if any batch row holds more than it may."""
        whole, last = pipeline.allocate.whole_model, entries[-1].step
        counted = [entries] if whole else [[entry] for entry in entries]  # those whose rows count together
        over = [_over(group, budget) for group in counted for _ in group]
        if not np.any(over):
            return
        scored = [Scored(entry.view, pipeline.score.score(entry.view, entry.step)) for entry in entries]
        if isinstance(pipeline.score, CrossLayer):
            final = pipeline.score.across(scored, last)
            scored = [Scored(entry.view, scores) for entry, scores in zip(entries, final, strict=True)]
        if whole:
            quotas = list(pipeline.allocate.allocate(budget, scored, last))
        else:
            quotas = [
                pipeline.allocate.allocate(budget, [mine], entry.step)[0] if entry.quota is None else entry.quota
                for entry, mine in zip(entries, scored, strict=True)
            ]
        for entry, mine, quota, rows in zip(entries, scored, quotas, over, strict=True):
            known = quota if isinstance(quota, np.ndarray) else self.ops.host(quota)
            self._carry_out(pipeline, entry, mine, known, rows)

    def _carry_out(self, pipeline: Pipeline, entry: _Entry, scored: Scored, quota: Arr, over: Arr) -> None:
        """Select and merge. A batch row that is not ``over`` its budget keeps all it holds: it has no plan."""
        layer, step, held = entry.layer, entry.step, entry.layer.table.held
        due = np.where(over[:, None], quota, np.maximum(quota, held))
        selection = pipeline.select.select(scored, due, step)
        plan = pipeline.merge.merge(scored, selection, step)
        layer.table.heads, gone, folded = carry_out(entry.sheet.rows, plan, layer.table, self.ops, self.dtype)
        kept = layer.table.held
        layer.left = layer.left + (held - kept).sum(axis=1)
        layer.merged = layer.merged + folded
        layer.exceeded = np.where(over, np.maximum(kept - due, 0).sum(axis=1), layer.exceeded)
        if step.phase is Phase.PREFILL:
            layer.prompt_quota = np.where(over[:, None], quota, layer.prompt_quota)
        for name, data in {**selection.registers, **plan.registers}.items():
            layer.table.registers[name] = self.ops.host(data)
        if pipeline.recall is not None:
            layer.archive.add(gone)
            layer.archive.kinds.update(layer.table.kinds)
        self.settled = self.length

    # Between passes --------------------------------------------------------------------------------------------------

    def reorder(self, index: Sequence[int]) -> None:
        """Batch rows with everything that is theirs, in this order, repeats allowed."""
        chosen = list(index)
        for layer in self.layers:
            layer.table, layer.archive = layer.table.chosen(chosen), layer.archive.chosen(chosen)
            layer.asked = [list(layer.asked[b]) for b in chosen]
            for name in ("seen", "prompt", "prompt_kept", "prompt_quota", "left", "merged", "exceeded"):
                setattr(layer, name, getattr(layer, name)[chosen])

    def crop(self, length: int) -> None:
        """Take tokens back, as if they had never come.

        Raises:
            CacheError: if there are not so many, or what they did cannot be undone.
        """
        if not 0 <= length <= self.length:
            raise CacheError(f"{self.length} tokens have passed; there is no going to {length}.")
        if length == self.length:
            return
        if length == 0:
            self.reset()
            return
        if length < self.settled:
            raise CacheError(f"what came up to token {self.settled} has left its mark.")
        for layer in self.layers:
            before = layer.table.held
            for rows in (rows for heads in layer.table.heads for rows in heads):
                rows[:] = [row for row in rows if row.position < length]
            layer.seen = layer.seen - (before - layer.table.held)[:, 0]
            layer.prompt = np.minimum(layer.prompt, layer.seen)
        self.length = length


def _arrive(layer: SlowLayer, keys: Arr, values: Arr, columns: Mapping[str, Arr], now: Now) -> None:
    """A row for each token that is not padding."""
    for name, data in columns.items():
        layer.table.kinds[name] = (data.dtype, "keep")
    for b, heads in enumerate(layer.table.heads):
        for h, rows in enumerate(heads):
            for t in np.flatnonzero(now.valid[b]).tolist():
                known = {name: float(data[b, t]) for name, data in columns.items()}
                rows.append(Row(now.start + t, keys[b, h, t], values[b, h, t], {"count": 1.0, **known}))


def _over(entries: Sequence[_Entry], budget: Arr) -> Arr:
    """Which batch rows hold more than they may, bool [B]: in some head, or in all where no quota is known yet."""
    held, quotas = [entry.layer.table.held for entry in entries], [entry.quota for entry in entries]
    if any(quota is None for quota in quotas):
        over: Arr = np.sum([rows.sum(axis=1) for rows in held], axis=0) > budget * sum(rows.shape[1] for rows in held)
        return over
    heads: Arr = np.any([(rows > quota).any(axis=1) for rows, quota in zip(held, quotas, strict=True)], axis=0)
    return heads
