"""From scored rows to the Plan: what the stages of a policy hand to each other.

Shapes are as in `_types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ._errors import PlanError
from ._types import EMPTY, Array, CacheView, KeepMask, Scores

__all__ = ["Assignment", "Plan", "Scored", "Selection", "Weights"]


@dataclass(frozen=True, slots=True)
class Scored:
    """What an allocator and a selector go by.

    Attributes:
        view: the table of a layer.
        scores: floating [B, H, S]; higher = keep.
    """

    view: CacheView
    scores: Scores


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows stay.

    Attributes:
        keep: bool [B, H, S].
        groups: int64 [B, H, S] cluster ids, for mergers that need them.
        registers: per-head state to carry on, each [B, H].
    """

    keep: KeepMask
    groups: Array | None = None
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where the rows that are not kept go.

    Attributes:
        into: int64 [B, H, S, M], the kept row that a dropped row folds into; -1 where it does not.
        similarity: floating [B, H, S, M], how alike the two are, where the assigner went by that.
        registers: per-head state to carry on, each [B, H].
    """

    into: Array
    similarity: Array | None = None
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Weights:
    """With what weight rows fold; all fields but the last are those of a `Plan`.

    Attributes:
        weight: floating [B, H, S, M].
        own: floating [B, H, S].
        key_scale: floating [B, H, S]; None: 1.
        value_scale: floating [B, H, S]; None: 1.
        folds: bool [B, H, S, M], what folds at all: the rest is dropped, and with it what it counts. None: everything
            that is assigned.
    """

    weight: Array
    own: Array
    key_scale: Array | None = None
    value_scale: Array | None = None
    folds: Array | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen to a table; pure data, in the coordinates of the table it was made for.

    A kept row ``n`` becomes ``scale[n] * (self_weight[n] * row[n] + sum of weight[s, m] * row[s])`` over all (s, m)
    with ``into[s, m] == n``, where scale is key_scale for keys and value_scale for values. Rows that are neither kept
    nor folded into a kept row are dropped.

    Attributes:
        keep: bool [B, H, S].
        into: int64 [B, H, S, M], the kept row that a dropped row folds into; -1 where it does not. None: pure eviction.
        weight: float32 [B, H, S, M].
        self_weight: float32 [B, H, S].
        merge_keys: False for mergers that touch values only.
        key_scale: floating [B, H, S]; None: 1.
        value_scale: floating [B, H, S]; None: 1.
        registers: per-head state to carry on, each [B, H].
    """

    keep: KeepMask
    into: Array | None = None
    weight: Array | None = None
    self_weight: Array | None = None
    merge_keys: bool = True
    key_scale: Array | None = None
    value_scale: Array | None = None
    registers: Mapping[str, Array] = field(default_factory=lambda: EMPTY)

    def __post_init__(self) -> None:
        if self.into is not None and (self.weight is None or self.self_weight is None):
            raise PlanError("Plan(into=...) needs weight= and self_weight= too: a fold without weights means nothing.")
        if self.into is None and not (self.key_scale is None and self.value_scale is None):
            raise PlanError("Plan(key_scale=..., value_scale=...) needs into= too: only merged rows are scaled.")
