"""A family: a tiny random model, prompts for it, and what kvpolicy makes of it.

Everything is offline and seeded. `Family.refused` is the one place that says what is expected: the tests hold kvpolicy
to it, and `scripts.families` writes the table of `docs/families.md` from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy import AUDIO, IMAGE, TEXT, VIDEO

PAD, START, FIRST_WORD, VOCABULARY = 0, 1, 10, 151
PLACEHOLDERS = {IMAGE: 2, VIDEO: 3, AUDIO: 4}  # the tokens that stand for a part of one

DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # attention so sharp that one wrong row changes the tokens
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,  # so that every generation has its full length
}

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Media:
    """An image, a video or a sound in a prompt.

    Attributes:
        tokens: how many stand for it.
        size: as its model wants to have it: patches down and across, or frames.
        kind: `IMAGE`, `VIDEO` or `AUDIO`.
        lead: whether a start token comes before it.
    """

    tokens: int
    size: tuple[int, ...] = ()
    kind: int = IMAGE
    lead: bool = False


Prompt = Sequence[int | Media]  # so many words, or something else


def no_media(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """What a prompt of text needs besides its tokens."""
    return {}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: as people call it.
        kind: the class of the model.
        config: its configuration, made anew.
        prompts: of different lengths.
        media: what goes into the model besides the tokens of a prompt and their mask.
        layers: numbers of the layers that are under the policy.
        notes: for the page.
        refused: the error that `enable`, `PolicyCache` or the first pass raises; empty: it is served.
        as_text: whether images have no rows in the cache.
    """

    name: str
    kind: type[PreTrainedModel]
    config: Callable[[], PreTrainedConfig]
    prompts: Sequence[Prompt] = ((17,), (25,), (21,))
    media: Callable[[Prompt, Tensor, torch.Generator], Inputs] = field(default=no_media, repr=False)
    layers: Sequence[int] = (0, 1, 2)
    notes: str = ""
    refused: str = ""
    as_text: bool = False

    def __repr__(self) -> str:
        return self.name

    def new(self) -> Any:
        """A model, always with the same weights."""
        torch.manual_seed(7)
        return self.kind(self.config()).eval()

    def rows(self) -> list[Inputs]:
        """The prompts, each a batch of one without padding."""
        rows = []
        for seed, prompt in enumerate(self.prompts, 1):
            ids = torch.cat([self._tokens(part, 10 * seed + at) for at, part in enumerate(prompt)])[None]
            media = self.media(prompt, ids, torch.Generator().manual_seed(seed))
            rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), **media})
        return rows

    def batch(self) -> Inputs:
        """All rows, padded."""
        return batch(self.rows(), right=self.config().is_encoder_decoder)

    def segments(self) -> list[Tensor]:
        """What each token of each prompt stands for, by how the prompt was put together."""
        return [torch.cat([self._kinds(part) for part in prompt]) for prompt in self.prompts]

    def _tokens(self, part: int | Media, seed: int) -> Tensor:
        if isinstance(part, int):
            return words(part, seed)[0]
        return torch.tensor([START] * part.lead + [PLACEHOLDERS[part.kind]] * part.tokens)

    def _kinds(self, part: int | Media) -> Tensor:
        if isinstance(part, int) or self.as_text:
            return torch.full((part if isinstance(part, int) else part.lead + part.tokens,), TEXT)
        return torch.tensor([TEXT] * part.lead + [part.kind] * part.tokens)


def batch(rows: Sequence[Inputs], *, right: bool = False) -> Inputs:
    """One batch of these rows; pixels follow one another as processors do it.

    Padding stands on the left, and on the right for an encoder, whose positions do not mind the mask.
    """
    out: Inputs = {}
    length = max(row["input_ids"].shape[1] for row in rows)
    for name in sorted({name for row in rows for name in row}):
        parts = [row[name] for row in rows if name in row]
        if name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask"):
            parts = [padded(part, length - part.shape[1], right=right) for part in parts]
        out[name] = torch.cat(parts)
    return out


def padded(data: Tensor, count: int, *, right: bool) -> Tensor:
    """With ``count`` zeros more along the second dimension."""
    zeros = data.new_zeros(data.shape[0], count, *data.shape[2:])
    return torch.cat([data, zeros] if right else [zeros, data], dim=1)


def words(length: int, seed: int) -> Tensor:
    """Random text, [1, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, VOCABULARY, (1, length), generator=generator)
