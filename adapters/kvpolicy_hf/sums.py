"""Attention that also tells what each query's softmax divides by, which it computes anyhow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

__all__ = ["attention_with_sums"]


def attention_with_sums(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """Causal attention by the kernel that sdpa would choose: the output, and the log-sum-exp of every query's logits.

    Args:
        query: [B, Hq, Q, D].
        key: [B, H, Q, D]; H divides Hq.
        value: [B, H, Q, Dv].
        scale: of the products of queries and keys.

    Returns:
        The output [B, Q, Hq, Dv] and the sums, float32 [B, Hq, Q]; None where that kernel keeps them to itself.
    """
    grouped = query.shape[1] != key.shape[1]
    choice = torch._fused_sdp_choice(query, key, value, None, 0.0, True, scale=scale, enable_gqa=grouped)
    aten = torch.ops.aten
    if choice == SDPBackend.CUDNN_ATTENTION.value and query.is_cuda:
        told = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, True, False, scale=scale)
    elif choice == SDPBackend.FLASH_ATTENTION.value and not grouped and query.is_cuda and query.shape[-1] % 8 == 0:
        told = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, False, scale=scale)
    elif choice == SDPBackend.FLASH_ATTENTION.value and not grouped and query.device.type == "cpu":
        told = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)
    else:
        return None
    out, sums = told[:2]
    return out.transpose(1, 2).contiguous(), sums.reshape(query.shape[:3])
