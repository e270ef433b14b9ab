"""A listener that notes what every plan does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from kvpolicy import CacheView, Plan, Report, Step

from .errors import PlotError
from .history import Change, History, Ints

__all__ = ["Watch"]

NOTHING: Ints = np.zeros((0, 2), np.int64)
NOTHING.setflags(write=False)


@dataclass(slots=True)
class _Layer:
    """What a layer held after its latest plan."""

    present: np.ndarray[Any, np.dtype[np.bool_]]  # [H, tokens seen], of the watched batch row
    held: Ints  # [B, H]
    seen: Ints  # [B]
    changes: list[Change] = field(default_factory=list)


@final
class Watch:
    """Notes what the plans of one request do to one batch row, for the pictures to show.

    It is called with every plan, as ``PolicyCache(model, policy, inputs=inputs, listen=watch)``, and copies what it
    notes: which rows leave, into which they fold, and which come back. For each request take a new one. Batch rows
    that change places, as in a beam search, it cannot follow.

    Args:
        row: the batch row.

    Raises:
        PlotError: if ``row`` is no batch row; at the first plan, if there are not so many.
    """

    def __init__(self, row: int = 0) -> None:
        if type(row) is not int or row < 0:
            raise PlotError(f"Watch(row={row!r}): a batch row is an integer from 0 on.")
        self._row = row
        self._layers: dict[int, _Layer] = {}
        self._places = np.zeros(0, np.int64)  # the arrival index of each token of the row
        self._segments = np.zeros(0, np.int64)
        self._prompt: int | None = None
        self._doubt = ""  # why these plans are not those of one request

    def __call__(self, layer: int, view: CacheView, plan: Plan, step: Step) -> None:
        """Note a plan before it is carried out."""
        self._check_row(len(step.seen))
        row, host = self._row, step.ops.host
        positions, alive = host(view.positions[row]), host(view.valid[row])  # [H, S]
        keep = host(plan.keep & view.valid)  # [B, H, S]
        if self._prompt is None:
            self._prompt = int(step.prompt[row])
        self._count(view, step, positions[0], alive[0])
        if not self._doubt:
            before = self._layers.get(layer)
            now = np.zeros((len(alive), int(step.seen[row])), dtype=np.bool_)
            head, slot = np.nonzero(alive)
            now[head, np.searchsorted(self._places, positions[head, slot])] = True
            back = self._returned(layer, before, now, step)
            left = self._left(plan, step, positions, alive & ~keep[row])
            now[left[:, 0], left[:, 1]] = False
            changes = [] if before is None else before.changes
            if len(back) or len(left):
                changes.append(Change(int(step.seen[row]), back, left))
            self._layers[layer] = _Layer(now, keep.sum(axis=-1), step.seen.copy(), changes)

    def history(self, report: Report) -> History:
        """What became of the batch row's tokens until now: data of its own, for all pictures.

        Args:
            report: of the cache that the watch listens to, as it is now: ``cache.report()``. It tells what came after
                the latest plan, and whether any plan was missed.

        Raises:
            PlotError: if no token has passed; or if what the watch heard does not explain what the cache holds:
                because it listened to another one, or to two, to a cache that was reset, to batch rows that changed
                places, or to decoding in place, whose plans are not told.
        """
        if not report.tokens:
            raise PlotError("no token has passed yet. Hint: generate first, then watch.history(cache.report()).")
        self._check_row(len(report.tokens))
        if self._doubt:
            raise PlotError(self._doubt)
        tokens = np.asarray(report.tokens)
        for layer, told in enumerate(report.layers):
            known = self._layers.get(layer)
            held = float((tokens if known is None else known.held + (tokens - known.seen)[:, None]).mean())
            if not np.isclose(held, told.rows):
                raise PlotError(
                    f"the report says that layer {layer} holds {told.rows:g} rows, and by the plans that this watch "
                    f"heard of it holds {held:g}. Hint: the report of the cache that was made with listen=watch; "
                    f"decoding in place (compile_decode) tells no plans."
                )
        many = int(tokens[self._row])
        segments = np.zeros(many, np.int64)
        segments[: len(self._segments)] = self._segments
        known_layers = [self._layers.get(layer) for layer in range(len(report.layers))]
        usual = max((len(one.present) for one in self._layers.values()), default=1)
        return History(
            tokens=many,
            prompt=self._prompt,
            heads=tuple(usual if one is None else len(one.present) for one in known_layers),
            segments=_frozen(segments),
            changes=tuple(() if one is None else tuple(one.changes) for one in known_layers),
        )

    def _check_row(self, batch: int) -> None:
        if self._row >= batch:
            raise PlotError(f"Watch(row={self._row}): the model runs {batch} batch rows, 0 .. {batch - 1}.")

    def _count(self, view: CacheView, step: Step, positions: Ints, alive: Any) -> None:
        """Number the tokens that have come since the latest plan of any layer: all of them are still in this table."""
        if step.seen[self._row] == len(self._places):
            return
        fresh = np.flatnonzero(alive & (positions > (self._places[-1] if len(self._places) else -1)))
        fresh = fresh[positions[fresh].argsort()]
        if len(self._places) + len(fresh) != step.seen[self._row]:
            self._doubt = (
                f"this watch noted {len(self._places)} tokens, then {len(fresh)} new ones came, and "
                f"{step.seen[self._row]} had been seen in all: these are two requests. Hint: a new Watch() for each "
                f"PolicyCache, and for each request of one that is reset."
            )
            return
        self._places = np.concatenate([self._places, positions[fresh]])
        segments = np.zeros(len(fresh), np.int64)
        if "segment" in view.columns:
            segments = step.ops.host(view.columns["segment"].data[self._row])[0, fresh]
        self._segments = np.concatenate([self._segments, segments])

    def _returned(self, layer: int, before: _Layer | None, now: Any, step: Step) -> Ints:
        """Rows (head, token) that an earlier plan took away, and that are there again."""
        if before is None:
            return NOTHING
        expected = np.ones_like(now)
        expected[:, : before.present.shape[1]] = before.present
        if np.array_equal(now, expected):
            return NOTHING
        back, lost = now & ~expected, expected & ~now
        archived = step.archived and step.archived[layer][self._row].any()
        if lost.any() or (back.any() and not archived):
            kind, (_, token) = ("lacks", np.argwhere(lost)[0]) if lost.any() else ("has", np.argwhere(back)[0])
            self._doubt = (
                f"layer {layer} {kind} token {token}, which is not what the plans that this watch heard of made of it: "
                f"these are two requests, or batch rows changed places. Hint: a new Watch() for each PolicyCache; "
                f"beam search has no pictures."
            )
        return _frozen(np.argwhere(back))

    def _left(self, plan: Plan, step: Step, positions: Ints, leaving: Any) -> Ints:
        """Rows (head, token, the token whose row it folds into) that this plan takes away."""
        head, slot = np.nonzero(leaving)
        token = np.searchsorted(self._places, positions[head, slot])
        into = np.full(len(head), -1)
        if plan.into is not None and len(head):
            targets = step.ops.host(plan.into[self._row])[head, slot]  # [N, M]
            assert plan.weight is not None, "a plan that folds has weights"
            weight = np.where(targets >= 0, step.ops.host(plan.weight[self._row])[head, slot], -np.inf)
            target = np.take_along_axis(targets, weight.argmax(axis=-1)[:, None], axis=-1)[:, 0]
            into = np.where(target >= 0, np.searchsorted(self._places, positions[head, target]), -1)
        return _frozen(np.stack([head, token, into], axis=1))


def _frozen(data: Ints) -> Ints:
    data.setflags(write=False)
    return data
