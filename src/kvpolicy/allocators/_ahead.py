"""`Allocator.allocate` of those that need no scores."""

from __future__ import annotations

from collections.abc import Sequence

from .._plan import Scored
from .._protocols import Ahead
from .._step import Step
from .._types import Counts, HeadCounts

__all__ = ["quotas_ahead"]


def quotas_ahead(allocator: Ahead, budget: Counts, layers: Sequence[Scored], step: Step) -> Sequence[HeadCounts]:
    """What `Ahead.ahead` says of each of these layers."""
    views = [layer.view for layer in layers]
    parts = step.heads.parts
    return [allocator.ahead(budget, view.layer, view.num_layers, parts * view.shape[1], step) for view in views]
