"""What a policy will allow in the tokens to come, as far as the host can know it before they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import _engine
from ._errors import PolicyError
from ._policy import Pipeline
from ._protocols import Ahead, CrossLayer
from ._step import Phase, Step
from ._tentative import Untold
from ._types import Counts, HeadCounts
from .mergers import Drop
from .schedulers import MOST_ROWS
from .selectors import TopK

__all__ = ["Forecast", "budgets_ahead", "check_foreseeable", "forecast"]

_DATA = ("queries", "query_positions", "query_valid", "query_reach", "earlier", "module")


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next T tokens of one layer.

    Attributes:
        quotas: int64 [T, B, H]; `MOST_ROWS` where nobody has to leave. None: nobody ever has to.
        room: int64 [B, H], the most rows that a head holds at once: those of a token before its plan.
        surplus: the most rows that a head gives up at one token.
    """

    quotas: HeadCounts | None
    room: HeadCounts
    surplus: int


def check_foreseeable(pipeline: Pipeline | None) -> None:
    """Raise unless the host can know how many rows each head will hold, and rows only come and go.

    Raises:
        PolicyError: names the stage, and why.
    """
    if pipeline is None:
        return
    select, allocate = pipeline.select, pipeline.allocate
    if pipeline.recall is not None:
        raise _refused("recall", pipeline.recall, "brings back as many rows as it likes")
    if isinstance(pipeline.score, CrossLayer):
        raise _refused("score", pipeline.score, "waits until every layer has attended")
    if _engine.window_of(pipeline) > 1:
        raise _refused("score", pipeline.score, "looks at queries of earlier tokens")
    if allocate.whole_model or not isinstance(allocate, Ahead):
        raise _refused("allocate", allocate, "shares the budget out by scores")
    if not isinstance(select, TopK) or select.text:
        raise _refused("select", select, "may keep more rows than the quota")
    if not isinstance(pipeline.merge, Drop):
        raise _refused("merge", pipeline.merge, "folds rows while decoding")


def budgets_ahead(pipeline: Pipeline, step: Step, tokens: int) -> list[tuple[Step, Counts | None]]:
    """What the schedule says of each of the next ``tokens`` tokens, int64 [B] or None, and the step that it was told.

    ``step`` is that of the latest token; layers whose counts are the same share the answer.

    Raises:
        CacheError: if the scheduler looks at more than counts.
    """
    unseen: Any = Untold(f"{pipeline.schedule!r} or {pipeline.allocate!r} looks at a token that has not come. {_HINT}")
    rows = (unseen,) * len(step.held)
    blind = replace(step, phase=Phase.DECODE, held=rows, archived=rows, **dict.fromkeys(_DATA, unseen))
    steps = [replace(blind, seen=step.seen + n, length=step.length + n) for n in range(1, tokens + 1)]
    return [(coming, _engine.budget_of(pipeline, coming)) for coming in steps]


def forecast(
    pipeline: Pipeline, ahead: Sequence[tuple[Step, Counts | None]], held: HeadCounts, layer: int, num_layers: int
) -> Forecast:
    """What a layer will hold, and has to give up, if it holds ``held`` [B, H] now.

    Args:
        pipeline: that of decoding, which `check_foreseeable`.
        ahead: from `budgets_ahead`.
        held: rows of each head.
        layer: which layer, of ``num_layers``.
        num_layers: how many layers are under the policy.

    Raises:
        CacheError: if the allocator looks at more than counts.
    """
    assert isinstance(pipeline.allocate, Ahead)
    assert isinstance(pipeline.select, TopK)
    quotas, room, surplus = [], held, 0
    for step, budget in ahead:
        if budget is None:
            quota = np.full_like(held, MOST_ROWS)
        else:
            quota = pipeline.allocate.ahead(budget, layer, num_layers, step.heads.parts * held.shape[1], step)
        room = np.maximum(room, held + 1)
        kept = np.minimum(held + 1, np.maximum(quota, pipeline.select.floor))
        surplus = max(surplus, int((held + 1 - kept).max(initial=0)))
        held = kept
        quotas.append(quota)
    return Forecast(np.stack(quotas), room, surplus)


_HINT = "Hint: decode without compile_decode."


def _refused(name: str, stage: object, why: str) -> PolicyError:
    return PolicyError(
        f"Policy(decode=...): {name}={stage!r} {why}, which compiled decoding does not serve yet. {_HINT}"
    )
