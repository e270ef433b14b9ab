"""A model's rotary embedding as a record keeps it: so many radians a position for each pair of dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvpolicy import Rotate

from .._transformers import PreTrainedModel
from .._transformers.rotary import rotary_parts
from ..rotary import rotation as rotation_of

__all__ = ["frequencies", "rotation"]


def frequencies(model: PreTrainedModel, dim: int) -> Tensor | None:
    """Radians a position, float32 [R / 2]; None unless the model turns its keys as `rotation` does.

    Args:
        model: an enabled model.
        dim: dimensions of a head, R or more.
    """
    rotate, _ = rotation_of(model)
    parts = rotary_parts(model)
    if rotate is None or isinstance(parts, str):
        return None
    module: Any = parts[0].module
    known: Tensor = module.inv_freq.detach().float()
    places = torch.arange(-3, 5, device=known.device)[None, None]
    probe = torch.arange(places.numel() * dim, device=known.device).sin().reshape(1, 1, -1, dim)
    same = torch.allclose(rotation(known)(probe, places), rotate(probe, places), atol=1e-4)
    return known.cpu().clone() if same else None


def rotation(frequencies: Tensor) -> Rotate:
    """``rotate(x, by)``: rotary vectors [B, H, N, D] as if each token stood ``by`` [B, H, N] positions further on.

    Dimension i is paired with i + R / 2; those from R on are not turned.
    """

    def rotate(vectors: Tensor, by: Tensor) -> Tensor:
        wide = torch.promote_types(vectors.dtype, torch.float32)
        angle = by[..., None].to(wide) * frequencies.to(vectors.device, wide)
        cos, sin, pairs = angle.cos(), angle.sin(), angle.shape[-1]
        first, second, rest = vectors.to(wide).tensor_split((pairs, 2 * pairs), dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
        return turned.to(vectors.dtype)

    return rotate
