"""How much each row is worth keeping."""

from .attention import AttentionMass
from .position import FixedPoint, Recency

__all__ = ["AttentionMass", "FixedPoint", "Recency"]
