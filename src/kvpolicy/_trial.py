"""Tokens that may be taken back go to copies of the layers, until it is known which of them stay."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from ._layer import Layer
from ._pass import Pass
from ._policy import Policy
from ._protocols import Backend
from ._step import Phase
from ._tentative import check_layerwise, of_another_layer
from ._types import Array, HeadCounts

__all__ = ["Trial", "Tried"]


@final
@dataclass(frozen=True, slots=True)
class Tried:
    """A layer as it was before tentative tokens, which go to a copy of it, and what it takes to run them again."""

    before: Layer
    arrived: list[tuple[Array, Array, Pass]] = field(default_factory=list)  # what `Session.append` was given
    attended: list[tuple[Array, float, dict[str, Any]]] = field(default_factory=list)  # and `Session.advance`


@final
class Trial:
    """The copies that stand in the places of a session's layers.

    Args:
        policy: of the session.
        layers: those of the session.
        ops: the backend.

    Attributes:
        tried: by number, the layers in whose places copies stand.
    """

    def __init__(self, policy: Policy, layers: list[Layer], ops: Backend) -> None:
        self._policy, self._layers, self._ops = policy, layers, ops
        self.tried: dict[int, Tried] = {}

    def of(self, layer: int) -> Tried:
        """From here on a copy of the layer takes the tokens; the layer itself waits to hear which of them stay."""
        if layer not in self.tried:
            check_layerwise(self._policy)
            before = self._layers[layer]
            self.tried[layer] = Tried(before)
            self._layers[layer] = copy.deepcopy(before, {id(self._ops): self._ops})
            self._layers[layer].on_trial = True
        return self.tried[layer]

    def before(self) -> list[Layer]:
        """All layers as they were before the first of these tokens."""
        return [self.tried[layer].before if self.tried else state for layer, state in enumerate(self._layers)]

    def end(self) -> dict[int, Tried]:
        """The layers themselves are back in their places; what the copies were given is returned."""
        tried, self.tried = self.tried, {}
        for layer, one in tried.items():
            self._layers[layer] = one.before
        return tried

    def counts(self, layer: int, name: str) -> tuple[HeadCounts, ...]:
        """A count [B, parts * H] of every layer, as it stands when ``layer`` takes the pass under way."""
        if not self.tried and self._layers[-1].length:  # every token has come to every layer before
            return tuple([getattr(state, name) for state in self._layers])
        tried = self.tried.get(layer)
        counts: list[Any] = []
        nothing = np.zeros_like(self._layers[layer].held)
        for index, state in enumerate(self._layers):
            # A layer before this one may be tokens ahead, and one behind it has not even come to the settled ones.
            ahead = self.tried.get(index) if index != layer else None
            known = ahead.before if ahead is not None else state
            settled = name == "prompt_quota" and (index < layer or tried is None or tried.before.phase is Phase.DECODE)
            if tried is not None and index != layer and not settled:
                counts.append(of_another_layer(index, layer))
            else:
                counts.append(getattr(known, name) if known.length else nothing)
        return tuple(counts)
