"""The ranks that share a model's key/value heads, from its plan of tensor parallelism."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel

from kvpolicy import UnsupportedModelError

from .config import own_config

__all__ = ["heads_group"]

_KEY_PROJECTIONS = ("k_proj", "qkv_proj", "query_key_value", "kv_b_proj")  # by which attention gets its heads' keys


def heads_group(model: PreTrainedModel) -> torch.distributed.ProcessGroup | None:
    """The ranks that share the key/value heads of the text decoder; None: this process has them all.

    Raises:
        UnsupportedModelError: if layers are on other processes, or the heads cannot be shared evenly among the ranks.
    """
    pp_size = getattr(getattr(model.config, "distributed_config", None), "pp_size", None) or 1
    if pp_size > 1:
        raise UnsupportedModelError(
            f"pp_size={pp_size}: this process runs only some layers of {type(model).__name__}, which "
            f"PolicyCache does not serve yet. Hint: device_map, or DistributedConfig(tp_size=...)."
        )
    size = model.tp_size or 1
    if size == 1:
        return None
    config, plan = own_config(model), model.tp_plan
    styles = {
        plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", f"{name}.{projection}"))
        for name, part in model.named_modules()
        if getattr(part, "config", None) is config and isinstance(getattr(part, "layer_idx", None), int)
        for projection in _KEY_PROJECTIONS
        if hasattr(part, projection)
    }
    if styles <= {None, "colwise_gather_output"} and styles:
        return None
    if styles != {"colwise"}:
        raise UnsupportedModelError(
            f"{type(model).__name__} under tp_size={size} makes its keys in a way that does not tell which heads this "
            f"rank has ({', '.join(sorted(map(str, styles))) or 'no known projection'}). Hint: load it without tp_size."
        )
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    if heads % size:
        raise UnsupportedModelError(
            f"tp_size={size} does not divide the {heads} key/value heads of {type(model).__name__}: a rank would hold "
            f"part of a head. Hint: a tp_size that divides {heads}."
        )
    mesh: Any = model._device_mesh
    group: torch.distributed.ProcessGroup = (mesh["tp"] if mesh.ndim > 1 else mesh).get_group()
    return group
