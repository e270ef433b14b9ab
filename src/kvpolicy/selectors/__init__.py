"""Which rows fill the quota."""

from .clusters import Clusters
from .top_k import TopK

__all__ = ["Clusters", "TopK"]
