"""What becomes of the rows that are not kept."""

from .assign import NearestPosition
from .drop import Drop
from .fold import Fold
from .weigh import Mean

__all__ = ["Drop", "Fold", "Mean", "NearestPosition"]
