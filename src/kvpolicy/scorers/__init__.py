"""How much each row is worth keeping."""

from .attention import AttentionMass
from .column import ColumnScore
from .controller import GRUController
from .elite import EliteMass
from .expected import ExpectedAttention
from .image import PostImageMass
from .keys import KeyDifference, KeyNorm
from .noise import Noise
from .pooled import Pooled
from .position import FixedPoint, Recency
from .shared import Shared
from .window import WindowMass

__all__ = [
    "AttentionMass",
    "ColumnScore",
    "EliteMass",
    "ExpectedAttention",
    "FixedPoint",
    "GRUController",
    "KeyDifference",
    "KeyNorm",
    "Noise",
    "Pooled",
    "PostImageMass",
    "Recency",
    "Shared",
    "WindowMass",
]
