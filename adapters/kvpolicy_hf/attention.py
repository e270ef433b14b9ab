"""The one place where queries, keys, values and mask meet: attend over the table, then let the policy act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvpolicy import CacheView, UnsupportedModelError

from ._transformers.attention import plain_attention, softmax_of
from ._transformers.masks import POLICY_OFFSET, STEADY_OFFSET, policy_mask, sdpa_mask, steady_mask
from .latents import LAYER, Latent
from .softmax import Softmax
from .sums import attention_with_sums

if TYPE_CHECKING:
    from kvpolicy import Attending, SteadyLayer

    from .layer import PolicyLayer

__all__ = ["LAYER", "mask", "policy_attention"]

# What a model may pass to its attention that sdpa leaves out: the rows of sparse attention.
_LEFT_OUT_BY_SDPA = ("indices", "block_indices")
# What a model may pass to its attention that would change the logits in a way that our scores do not follow.
_UNSUPPORTED = ("position_bias", "sliding_window", "head_mask")


def mask(*, kv_offset: int = 0, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask function of our attention: a `policy_mask` for a `PolicyCache`, the sdpa mask for anything else.

    A mask of two or three dimensions tells our attention that a policy is at work.

    Raises:
        UnsupportedModelError: if the model hides earlier tokens from later ones.
    """
    if kv_offset == POLICY_OFFSET:
        return policy_mask(attention_mask=attention_mask, **kwargs)
    if kv_offset == STEADY_OFFSET:
        return steady_mask(**kwargs)
    made: Tensor | None = sdpa_mask(kv_offset=kv_offset, attention_mask=attention_mask, **kwargs)
    return made


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

    Keys that come from a `PolicyCache` carry their layer; anything else is attended to as it is.

    Raises:
        UnsupportedModelError: if the layer uses a feature that the policy's scores would not see.
    """
    _refuse_if(module, _given(kwargs, *_LEFT_OUT_BY_SDPA))
    layer: PolicyLayer | None = getattr(key, LAYER, None)
    softmax = softmax_of(query, scaling, kwargs)
    if layer is None:
        if attention_mask is not None and attention_mask.ndim in (2, 3):
            raise UnsupportedModelError(
                f"{type(module).__name__} changes its keys between cache and attention, which PolicyCache does not "
                f"serve yet. Hint: use this model without a PolicyCache."
            )
        return _attend(module, query, key, value, attention_mask, softmax, dropout, kwargs)
    if layer.steady is not None:
        return _attend_in_place(module, layer.steady, query, key, value, softmax, dropout, kwargs)
    _check_served(layer, module, query, attention_mask, kwargs)
    if isinstance(key, Latent):
        key, value = key.as_subclass(Tensor), value.as_subclass(Tensor)
    outs = []
    for part in layer.begin(module, key, attention_mask):
        asking, keys, values = query[:, :, part], key[:, :, part], value[:, :, part]
        outs.append(_attend_and_act(module, layer, asking, keys, values, softmax, dropout, kwargs))
    return outs[0] if len(outs) == 1 else (torch.cat([out for out, _ in outs], dim=1), None)


def _attend_and_act(
    module: torch.nn.Module,
    layer: PolicyLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    softmax: Softmax,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """One part of a pass, which is all of it unless tokens may be taken back."""
    fresh = layer.is_empty
    view = layer.bring_in(key, value)
    turned = layer.turned(query)
    attending = layer.attending
    if attending is not None and query.shape[2] == 1 and not (fresh or dropout):
        out, shares = _by_backend(attending, view, turned, softmax, layer.count_bias, layer.wants_shares)
        layer.advance(module, turned, softmax, shares=shares)
        return out, None
    whole = fresh and not layer.has_gaps and layer.now.reach is None
    if whole and layer.wants_sums and softmax.is_plain and not (dropout or query.requires_grad):
        told = attention_with_sums(query, key, value, softmax.scale)
        if told is not None:
            layer.advance(module, turned, softmax, log_sums=told[1])
            return told[0], None
    visible = None if whole else _visible(view, layer, query)
    # The table keeps no graph. A first pass attends to the model's own tensors, the same rows, so that gradients flow.
    asking, keys, values = (query, key, value) if fresh else (turned, view.keys, view.values)
    attended = _attend(module, asking, keys, values, visible, softmax, dropout, kwargs)
    layer.advance(module, turned, softmax)
    return attended


def _attend_in_place(
    module: torch.nn.Module,
    steady: SteadyLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    softmax: Softmax,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """One token, on tensors whose shapes never change; nothing here waits for the device."""
    view, policy, shares = steady.put(key, value), steady.policy, None
    if steady.attending is not None:
        out, shares = _by_backend(steady.attending, view, query, softmax, policy.count_bias, steady.wants_shares)
    else:
        seen = _seen(view, view.valid[:, :, None], query, count_bias=policy.count_bias)
        out, _ = _attend(module, query, view.keys, view.values, seen, softmax, dropout, kwargs)
    told: dict[str, Any] = {"softcap": softmax.softcap, "sinks": softmax.sinks, "shares": shares}
    steady.advance(view, steady.step(query, softmax.scale, module=module, **told))
    return out, None


def _by_backend(
    backend: Attending, view: CacheView, query: Tensor, softmax: Softmax, count_bias: bool, want_shares: bool
) -> tuple[Tensor, Tensor | None]:
    """The output [B, 1, Hq, Dv] of one query a batch row over all valid rows, and the shares of these."""
    out, shares = backend.attend(
        view,
        query,
        scale=softmax.scale,
        softcap=softmax.softcap,
        sinks=softmax.sinks,
        count_bias=count_bias,
        want_shares=want_shares,
    )
    return out.transpose(1, 2), shares


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    softmax: Softmax,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """By sdpa, or by ourselves where sdpa has no such softmax."""
    if softmax.is_plain:
        scale = softmax.scale
        return plain_attention(module, query, key, value, attention_mask, scaling=scale, dropout=dropout, **kwargs)
    _refuse_if(module, _given(kwargs, "position_bias"))
    is_causal = query.shape[2] > 1 and bool(kwargs.get("is_causal", getattr(module, "is_causal", True)))
    return softmax.attend(query, key, value, attention_mask, is_causal=is_causal, dropout=dropout), None


def _check_served(
    layer: PolicyLayer, module: torch.nn.Module, query: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    used = _given(kwargs, *_UNSUPPORTED)
    # Every pass would feed all tokens anew, and a table would hold them again.
    if kwargs.get("use_cache") is False and layer.hears_use_cache:
        used.append("use_cache=False")
    causal = kwargs.get("is_causal") is not False and getattr(module, "is_causal", True) is not False
    # A single query sees everything anyway; a mask of three dimensions says what several see.
    if not causal and query.shape[2] > 1 and (attention_mask is None or attention_mask.ndim != 3):
        used.append("is_causal=False")
    if attention_mask is not None and attention_mask.ndim not in (2, 3):
        used.append(f"a {attention_mask.ndim}-D attention mask")
    _refuse_if(module, used)


def _given(kwargs: dict[str, Any], *names: str) -> list[str]:
    """Those of these arguments that the model passes."""
    return [name for name in names if kwargs.get(name) is not None]


def _refuse_if(module: torch.nn.Module, used: list[str]) -> None:
    if used:
        raise UnsupportedModelError(
            f"{type(module).__name__} attends with {', '.join(used)}, which PolicyCache does not serve yet. "
            f"Hint: use this model without a PolicyCache, or pass a 2-D attention_mask; an encoder-decoder takes its "
            f"PolicyCache in an EncoderDecoderCache."
        )


def _visible(view: CacheView, layer: PolicyLayer, query: Tensor) -> Tensor | None:
    """What each query sees: bool, or an additive bias with log counts, [B, 1 or Hq, Q, S]; None: everything."""
    now, single = layer.now, query.shape[2] == 1
    if single and not layer.has_gaps and not layer.count_bias:
        return None
    at = now.positions[:, None, :, None]
    last = at if now.reach is None else now.reach[:, None, :, None]
    rows = view.positions[:, :, None]
    # A padding token sees itself, so that no row of the softmax is empty; nobody else sees it.
    return _seen(view, ((rows <= last) & view.valid[:, :, None]) | (rows == at), query, count_bias=layer.count_bias)


def _seen(view: CacheView, rows: Tensor, query: Tensor, *, count_bias: bool) -> Tensor:
    """What is seen of the rows, bool [B, H, Q or 1, S], for each query head; with log counts, as what is added."""
    if count_bias:
        count = view.columns["count"].data.clamp(min=1).log().to(query.dtype)
        rows = torch.where(rows, count[:, :, None], -torch.inf)
    return rows.repeat_interleave(query.shape[1] // view.shape[1], dim=1)
