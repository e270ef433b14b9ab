"""The model's rotary embedding as a function of its own: vectors turned by so many positions more, or fewer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvpolicy import KVPolicyError, Policy, Rotate, UnsupportedModelError

from ._transformers import PreTrainedModel
from ._transformers.rotary import RotaryEmbedding, hidden_states, rotary_parts
from .latents import LAYER
from .stages import saying

__all__ = ["rotation", "rotation_for"]

_PLACES, _SHIFT = (2, 3, 11), 7  # of the tokens that the probe sends through the model's attention


def rotation_for(policy: Policy, model: PreTrainedModel) -> Rotate | None:
    """What `Session` takes as ``rotate``: None where the policy turns nothing.

    Raises:
        UnsupportedModelError: if the policy turns keys or queries and the model has no plain rotary positions.
    """
    needed = saying(policy, "needs_rotate")
    if policy.positions == "slots":
        needed.append("positions='slots'")
    if not needed:
        return None
    rotate, why_not = rotation(model)
    if rotate is None:
        raise UnsupportedModelError(
            f"{needed[-1]} needs plain rotary positions, and {type(model).__name__} {why_not}. Hint: "
            f"{'positions=' + repr('original') if policy.positions == 'slots' else 'another stage in its place'}."
        )
    return rotate


def rotation(model: PreTrainedModel) -> tuple[Rotate | None, str]:
    """``rotate(x, by)`` of an enabled model: [B, H, N, D] as if each token stood ``by`` [B, H, N] positions further on.

    It is made of the model's own rotary module and its own function that applies it, so that every layout is right
    (halves or neighbours, all of a head or a part), and believed only after the model's own attention has agreed.

    Returns:
        The function, or None and what is in the way.
    """
    parts = rotary_parts(model)
    if isinstance(parts, str):
        return None, parts
    embedding, attentions = parts
    rotate = _rotate(embedding)
    for attention in attentions:
        try:
            agreed = _agrees(rotate, embedding, attention, model)
        # Anything may go wrong in a model that is not built as expected; here that is an answer.
        except (KVPolicyError, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            return None, f"has attention that cannot be tried by itself ({type(error).__name__}: {error})"
        if not agreed:
            return None, "has full-attention layers whose queries and keys its rotary embedding does not simply turn"
    return rotate, ""


def _rotate(embedding: RotaryEmbedding) -> Rotate:
    def rotate(x: Tensor, by: Tensor) -> Tensor:
        batch, heads, rows, dim = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype).reshape(batch * heads, 1, rows, dim)  # every head as a batch row, with positions of its own
        cos, sin = embedding.angles(wide, by.reshape(batch * heads, rows))
        turned = embedding.apply(wide[..., : cos.shape[-1]], cos, sin)
        return torch.cat([turned, wide[..., cos.shape[-1] :]], dim=-1).reshape(x.shape).to(x.dtype)

    return rotate


class _Reached(Exception):  # noqa: N818 - what the probe is after
    """Queries and keys have come to our attention."""


class _Probe:
    """Stands in for a cache and for its layer: lets keys through to our attention, and stops there with the queries."""

    is_empty = True
    steady = None
    attending = None
    keys: Tensor

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        setattr(keys, LAYER, self)
        return keys, values

    def begin(self, *args: Any) -> list[slice]:
        return [slice(None)]

    def bring_in(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys

    def turned(self, queries: Tensor) -> Tensor:
        raise _Reached(queries)


def _agrees(rotate: Rotate, embedding: RotaryEmbedding, attention: torch.nn.Module, model: PreTrainedModel) -> bool:
    """Whether ``rotate`` makes of an attention module's queries and keys those of the same tokens further on."""
    probe, hidden = _Probe(), hidden_states(model, attention, len(_PLACES))
    near = torch.tensor([_PLACES], device=hidden.device)
    with torch.no_grad():
        try:
            embedding.attend(attention, hidden.expand(2, -1, -1), torch.cat([near, near + _SHIFT]), probe)
        except _Reached as reached:
            (queries,) = reached.args
        else:
            return False
        for both in (queries.float(), probe.keys.float()):
            first, second = both.split(1)
            turn = torch.full(first.shape[:3], _SHIFT, device=first.device)
            slack = max(1e-4, 8 * torch.finfo(model.dtype).eps) * float(both.abs().max())
            if not all(
                bool(torch.isfinite(there).all()) and float((rotate(here, by) - there).abs().max()) <= slack
                for here, there, by in ((first, second, turn), (second, first, -turn))
            ):
                return False
    return True
