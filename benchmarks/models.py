"""Models with the sizes of known ones and random weights: what they say means nothing, what they cost is real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

__all__ = ["LLAMA", "LLAVA", "QWEN", "SMALL", "Shape", "prompt", "random_model", "weight_bytes"]


@dataclass(frozen=True)
class Shape:
    """The text decoder of a model, as a Llama of the same sizes."""

    model: str
    layers: int
    hidden: int
    inner: int
    query_heads: int
    heads: int
    words: int
    dim: int = 128
    spread: float = 0.01  # standard deviation of the weights; twice that, and bfloat16 noise grows tenfold in 32 layers

    def row_bytes(self, itemsize: int = 2) -> int:
        """Keys and values of one token, in all layers and heads."""
        return 2 * self.layers * self.heads * self.dim * itemsize


LLAVA = Shape("LLaVA-1.5-7B", 32, 4096, 11008, 32, 32, 32064)
LLAMA = Shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128256)
QWEN = Shape("Qwen2.5-VL-7B", 28, 3584, 18944, 28, 4, 152064)
SMALL = Shape("small", 2, 64, 96, 4, 2, 997, dim=16, spread=0.2)


def random_model(shape: Shape, device: torch.device, attention: str = "sdpa") -> Any:
    """The model, drawn on its device: in bfloat16 on a GPU, in float32 elsewhere."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.dim,
        vocab_size=shape.words,
        initializer_range=shape.spread,
        max_position_embeddings=1 << 16,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def weight_bytes(model: Any) -> int:
    """What a decode step reads of the weights: all but the table of input embeddings."""
    table = model.get_input_embeddings().weight
    return sum(weight.nbytes for weight in model.parameters() if weight is not table)


def prompt(shape: Shape, batch: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Random words [batch, tokens]; a smaller batch is the beginning of a larger one."""
    generator = torch.Generator().manual_seed(1)
    most = 1 << 10
    return torch.randint(0, shape.words, (most, tokens), generator=generator)[:batch].to(device)
