"""Heads that hold the same tokens in the same slots: one of them is asked, and answers for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ._plan import Scored
from ._policy import Pipeline
from ._types import Array, CacheView

__all__ = ["alike_heads", "of_all_heads", "of_one_head"]


def alike_heads(pipeline: Pipeline) -> bool:
    """Whether heads that hold the same tokens go on doing so under equal quotas, by what the stages say."""
    return all(getattr(stage, "alike_heads", False) for stage in (pipeline.score, pipeline.select))


def of_one_head(scored: Scored) -> Scored:
    """The first head alone, of heads that hold the same tokens in the same slots and have the same scores."""
    view, rank = scored.view, scored.view.known_rank
    part = replace(
        view,
        keys=view.keys[:, :1],
        values=view.values[:, :1],
        positions=view.positions[:, :1],
        valid=view.valid[:, :1],
        columns={name: replace(column, data=column.data[:, :1]) for name, column in view.columns.items()},
        registers={name: data[:, :1] for name, data in view.registers.items()},
        rank=None if rank is None else rank[:, :1],
    )
    return Scored(part, scored.scores[:, :1])


def of_all_heads(made: Any, view: CacheView) -> Any:
    """A selection or a plan of one head, for all heads of the view; one of all heads as it is."""
    xp, heads = view.xp, view.shape[1]
    if made.keep.shape[1] == heads:
        return made

    def spread(data: Array) -> Array:
        return xp.broadcast_to(data, (data.shape[0], heads, *data.shape[2:]))

    registers = {name: spread(data) for name, data in made.registers.items()}
    names = ("keep", "groups", "into", "weight", "self_weight", "key_scale", "value_scale")
    told = {name: getattr(made, name, None) for name in names}
    return replace(made, registers=registers, **{n: spread(data) for n, data in told.items() if data is not None})
