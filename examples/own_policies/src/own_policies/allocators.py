from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kvpolicy import Counts, HeadCounts, Scored, Step


@dataclass(frozen=True)
class EarlyLayers:
    """The first half of the layers gets some rows more, and the second half as many fewer."""

    rows: int = 8

    whole_model: ClassVar[bool] = False

    def ahead(self, budget: Counts, layer: int, num_layers: int, heads: int, step: Step) -> HeadCounts:
        half = num_layers // 2
        side = int(layer < half) - int(layer >= num_layers - half)
        scarce = budget < step.seen  # where there is enough for all rows, each layer keeps all
        moved = np.where(scarce, np.minimum(self.rows, budget), 0)
        return np.repeat((budget + side * moved)[:, None], heads, axis=1)

    def allocate(self, budget: Counts, layers: Sequence[Scored], step: Step) -> Sequence[HeadCounts]:
        views = [entry.view for entry in layers]
        return [self.ahead(budget, view.layer, view.num_layers, view.shape[1], step) for view in views]
