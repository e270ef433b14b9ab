"""The triton backend: kernels in `kernels`, and beside them what launches each."""

from .backend import TritonBackend
from .kernels.fold import FOLDINGS
from .kernels.mass import TILINGS
from .kernels.nearest import SEARCHES

__all__ = ["FOLDINGS", "SEARCHES", "TILINGS", "TritonBackend"]
