"""Compressed keys and values (multi-head latent attention), which a model expands between cache and attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["LAYER", "Latent"]

LAYER = "_kvpolicy_layer"  # attribute of a key tensor: the layer whose table it belongs to


class Latent(Tensor):
    """A tensor of new tokens whose results say, as it does itself, which layer's table they belong to.

    The expansion treats every token by itself. So a table may hold what came of it, and new tokens are all that has to
    be expanded.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        layers = [getattr(leaf, LAYER) for leaf in tree_leaves((args, kwargs)) if hasattr(leaf, LAYER)]
        for leaf in tree_leaves(out):
            if layers and isinstance(leaf, cls):
                setattr(leaf, LAYER, layers[0])
        return out
