"""Into which kept row a dropped row goes."""

from .ema_gate import EMAGate
from .most_similar import MostSimilar
from .nearest_position import NearestPosition
from .next_kept import NextKept
from .same_cluster import SameCluster

__all__ = ["EMAGate", "MostSimilar", "NearestPosition", "NextKept", "SameCluster"]
