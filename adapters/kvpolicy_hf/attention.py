"""The one place where queries, keys, values and mask meet: attend over the table, then let the policy act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvpolicy import CacheView, UnsupportedModelError

from ._transformers import POLICY_OFFSET, is_plain_causal, plain_attention, sdpa_mask

if TYPE_CHECKING:
    from .layer import PolicyLayer

__all__ = ["LAYER", "mask", "policy_attention"]

LAYER = "_kvpolicy_layer"  # attribute of a key tensor: the layer whose table it belongs to

# What a model may pass to its attention that sdpa leaves out: attention sinks, and the rows of sparse attention.
_LEFT_OUT_BY_SDPA = ("s_aux", "sinks", "indices", "block_indices")
# What a model may pass to its attention that would change the logits in a way that our scores do not follow.
_UNSUPPORTED = ("softcap", "position_bias", "sliding_window", "head_mask")


def mask(*, kv_offset: int = 0, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask function of our attention: the 2-D padding mask for a `PolicyCache`, the sdpa mask for anything else.

    Raises:
        UnsupportedModelError: if the model lays something over the causal mask (bidirectional image blocks).
    """
    if kv_offset != POLICY_OFFSET:
        made: Tensor | None = sdpa_mask(kv_offset=kv_offset, attention_mask=attention_mask, **kwargs)
        return made
    if not is_plain_causal(kwargs["mask_function"]):
        raise UnsupportedModelError(
            "this model changes the causal mask of its full-attention layers (for example to let the tokens of an "
            "image see each other), which PolicyCache does not serve yet. Hint: use it without a PolicyCache."
        )
    if attention_mask is None:  # a mask of two dimensions also tells our attention that a policy is at work
        attention_mask = torch.ones(
            kwargs["batch_size"], kwargs["kv_length"], dtype=torch.bool, device=kwargs.get("device")
        )
    return attention_mask


def policy_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of every text layer of an enabled model.

    Keys that come from a `PolicyCache` carry their layer; anything else is attended to by sdpa as it is.

    Raises:
        UnsupportedModelError: if the layer uses a feature that the policy's scores would not see.
    """
    _refuse_if(module, [name for name in _LEFT_OUT_BY_SDPA if kwargs.get(name) is not None])
    layer: PolicyLayer | None = getattr(key, LAYER, None)
    if layer is None:
        if attention_mask is not None and attention_mask.ndim == 2:
            raise UnsupportedModelError(
                f"{type(module).__name__} changes its keys between cache and attention, which PolicyCache does not "
                f"serve yet. Hint: use this model without a PolicyCache."
            )
        return plain_attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    _check_served(module, attention_mask, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    fresh = layer.is_empty
    view = layer.bring_in(module, key, value, attention_mask)
    turned = layer.turned(query)
    visible = None if fresh and not layer.has_gaps else _visible(view, layer, query)
    # The table keeps no graph. A first pass attends to the model's own tensors, the same rows, so that gradients flow.
    asking, keys, values = (query, key, value) if fresh else (turned, view.keys, view.values)
    out = plain_attention(module, asking, keys, values, visible, scaling=scale, dropout=dropout, **kwargs)
    layer.advance(module, turned, scale)
    return out


def _check_served(module: torch.nn.Module, attention_mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    used = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        used.append("is_causal=False")
    if attention_mask is not None and attention_mask.ndim != 2:
        used.append(f"a {attention_mask.ndim}-D attention mask")
    _refuse_if(module, used)


def _refuse_if(module: torch.nn.Module, used: list[str]) -> None:
    if used:
        raise UnsupportedModelError(
            f"{type(module).__name__} attends with {', '.join(used)}, which PolicyCache does not serve yet. "
            f"Hint: use this model without a PolicyCache, or pass a 2-D attention_mask."
        )


def _visible(view: CacheView, layer: PolicyLayer, query: Tensor) -> Tensor | None:
    """What each query sees: bool, or an additive bias with log counts, [B, 1 or Hq, Q, S]; None: everything."""
    now, single = layer.now, query.shape[2] == 1
    if single and not layer.has_gaps and not layer.count_bias:
        return None
    at = now.positions[:, None, :, None]
    rows = view.positions[:, :, None]
    # A padding token sees itself, so that no row of the softmax is empty; nobody else sees it.
    seen = ((rows <= at) & view.valid[:, :, None]) | (rows == at)
    if layer.count_bias:
        count = view.columns["count"].data.clamp(min=1).log().to(query.dtype)
        seen = torch.where(seen, count[:, :, None], -torch.inf)
    expanded: Tensor = seen.repeat_interleave(query.shape[1] // view.shape[1], dim=1)
    return expanded
