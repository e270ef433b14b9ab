"""With what weight a row is folded."""

from .gaussian import Gaussian
from .mean import Mean
from .pivotal import Pivotal
from .prominence import Prominence
from .similarity import SimilaritySoftmax, SimilarityWeighted
from .zero_perturbation import ZeroPerturbation

__all__ = [
    "Gaussian",
    "Mean",
    "Pivotal",
    "Prominence",
    "SimilaritySoftmax",
    "SimilarityWeighted",
    "ZeroPerturbation",
]
