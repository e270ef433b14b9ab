"""The oracle: every verb as the loop that its formula says, in float64.

Slow and plain on purpose. It shares no code with any other backend, because an oracle that shares its subject's code
proves nothing; and it refuses (`PlanError`) what a faster backend may carry out without looking.
"""

from .backend import NumpyBackend
from .store import NumpyStore

__all__ = ["NumpyBackend", "NumpyStore"]
