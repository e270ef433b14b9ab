"""KV-cache policies of our own, for kvpolicy."""

from .allocators import EarlyLayers
from .mergers import AddValues, NeighbourMean
from .policies import loud_neighbours
from .schedulers import Staircase
from .scorers import LoudValues

__all__ = ["AddValues", "EarlyLayers", "LoudValues", "NeighbourMean", "Staircase", "loud_neighbours"]
