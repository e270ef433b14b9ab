from dataclasses import dataclass

import numpy as np

from kvpolicy import Counts, Step


@dataclass(frozen=True)
class Staircase:
    """A share of the tokens seen, rounded up to whole stairs: most decode steps leave the budget as it was."""

    keep: float
    stair: int = 16

    def budget(self, step: Step) -> Counts:
        stairs = np.maximum(np.ceil(self.keep * step.seen / self.stair), 1)
        rows: Counts = self.stair * stairs.astype(np.int64)
        return rows
