"""What becomes of the rows that are not kept."""

from .assigners import EMAGate, MostSimilar, NearestPosition, NextKept, SameCluster
from .drop import Drop
from .fold import Fold
from .weighers import Gaussian, Mean, Pivotal, Prominence, SimilaritySoftmax, SimilarityWeighted, ZeroPerturbation

__all__ = [
    "Drop",
    "EMAGate",
    "Fold",
    "Gaussian",
    "Mean",
    "MostSimilar",
    "NearestPosition",
    "NextKept",
    "Pivotal",
    "Prominence",
    "SameCluster",
    "SimilaritySoftmax",
    "SimilarityWeighted",
    "ZeroPerturbation",
]
