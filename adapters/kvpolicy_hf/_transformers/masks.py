"""The mask interface: what our attention gets in the place of a mask, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

from kvpolicy import CacheError, UnsupportedModelError

__all__ = ["POLICY_OFFSET", "STEADY_OFFSET", "policy_mask", "sdpa_mask", "sight", "steady_mask"]

POLICY_OFFSET = -1  # what our layers answer as the offset of their keys: no native cache has a negative one
STEADY_OFFSET = -2  # and while they decode in place


def policy_mask(
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None,
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    use_vmap: bool = False,
    device: Any = None,
    **kwargs: Any,
) -> Tensor:
    """What our attention needs of a mask, in the place of one number for each query and row.

    Under a causal mask, the padding mask: bool [B, T]. Where tokens see later ones, int64 [B, 2, T]: the padding mask,
    and the last token that each token of this pass sees. `sight` reads both.

    Raises:
        UnsupportedModelError: if a query does not see all tokens up to some token, itself or a later one.
    """
    if attention_mask is None:
        attention_mask = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    if mask_function is causal_mask_function:
        return attention_mask
    made: Any = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=0,
        mask_function=mask_function,
        allow_is_causal_skip=False,
        use_vmap=use_vmap,
        device=device,
    )
    seen: Tensor = made[:, 0].expand(batch_size, -1, -1)
    places = torch.arange(kv_length, device=seen.device)
    own = places[q_offset : q_offset + q_length].expand(batch_size, -1)
    reach = torch.where(seen, places, -1).amax(-1)
    if not torch.equal(seen, places <= reach[..., None]) or bool((reach < own).any()):
        raise UnsupportedModelError(
            "this model hides from its tokens some that came before them, in full-attention layers: PolicyCache serves "
            "causal masks, and such where tokens see later ones. Hint: use this model without a PolicyCache."
        )
    if torch.equal(reach, own):
        return attention_mask
    padding = attention_mask[:, :kv_length].long()
    return torch.stack([padding, torch.cat([places[:q_offset].expand(batch_size, -1), reach], dim=1)], dim=1)


def sight(
    mask: Tensor | None, start: int, length: int, batch: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """What a `policy_mask` says of this pass: which tokens are no padding, bool [B, Q], and how far each sees.

    The latter is int64 [B, Q], or None: up to itself.
    """
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device), None
    part = mask[..., start : start + length].to(device)
    return (part[:, 0].bool(), part[:, 1]) if mask.ndim == 3 else (part.bool(), None)


def steady_mask(*, batch_size: int, kv_length: int, q_offset: Any, device: Any, **kwargs: Any) -> Tensor:
    """The mask of a pass that decodes in place, whose shape never changes: bool [B, 1, 1, 1], as if it were made.

    `generate` makes it beside the compiled pass, and has waited for the token before: here is where one can count, but
    not while a pass is traced or recorded.

    Raises:
        CacheError: if there is no room for this token: ``kv_length`` is what the request may have.
    """
    if not (torch.compiler.is_compiling() or _is_recorded()) and int(q_offset) >= kv_length:
        raise CacheError(
            f"compile_decode(max_length={kv_length}): this is token {int(q_offset) + 1}. Hint: a larger max_length, of "
            f"all tokens with their padding."
        )
    return torch.ones(batch_size, 1, 1, 1, dtype=torch.bool, device=device)


def _is_recorded() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
