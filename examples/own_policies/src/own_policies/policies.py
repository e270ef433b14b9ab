from kvpolicy import Pipeline, Policy, TopK

from .allocators import EarlyLayers
from .mergers import NeighbourMean
from .schedulers import Staircase
from .scorers import LoudValues


def loud_neighbours(keep: float = 0.2, stair: int = 16, moved: int = 8, window: int = 4) -> Policy:
    """The first row and the loudest ones; the others join their neighbours."""
    pipeline = Pipeline(
        schedule=Staircase(keep, stair),
        score=LoudValues(),
        allocate=EarlyLayers(moved),
        select=TopK(first=1, recent=0.25),
        merge=NeighbourMean(window),
    )
    return Policy(prefill=pipeline, decode=pipeline)
