"""How the budget is shared among layers and heads."""

from .adaptive_heads import AdaptiveHeads
from .by_sparsity import BySparsity
from .by_strength_and_skew import ByStrengthAndSkew
from .by_variance import ByVariance
from .head_table import HeadTable
from .like_prompt import LikePrompt
from .nested import Nested
from .pyramid import Pyramid
from .uniform import Uniform

__all__ = [
    "AdaptiveHeads",
    "BySparsity",
    "ByStrengthAndSkew",
    "ByVariance",
    "HeadTable",
    "LikePrompt",
    "Nested",
    "Pyramid",
    "Uniform",
]
