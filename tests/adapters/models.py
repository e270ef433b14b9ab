"""Tiny random models and prompts: offline, seeded, with attention so sharp that one wrong row changes the tokens.

A `Family` knows how to build its model (the same weights each time) and its prompts, one dict of inputs a row. `batch`
puts rows together with padding on the left, so that a test can hold a row of a batch against the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.cache_utils import Cache

from kvpolicy import CacheView
from kvpolicy_hf import PolicyCache

PAD, IMAGE_START, IMAGE_TOKEN, VIDEO_TOKEN, FIRST_WORD, VOCABULARY = 0, 1, 2, 3, 4, 151

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.25,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,  # so that every generation has its full length
}

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: for test ids.
        new: a model, always with the same weights.
        rows: prompts, each a batch of one without padding, of different lengths.
        vision: the attribute path of the vision tower's configuration; None for text models.
    """

    name: str
    new: Callable[[], PreTrainedModel]
    rows: Callable[[], list[Inputs]]
    vision: bool = False

    def __repr__(self) -> str:
        return self.name

    def batch(self) -> Inputs:
        """All rows, padded on the left."""
        return batch(self.rows())

    def even(self) -> Inputs:
        """Two equally long rows: a batch without padding."""
        row = self.rows()[0]
        other = {**row, "input_ids": _reworded(row["input_ids"])}
        return batch([row, other])


def batch(rows: Sequence[Inputs]) -> Inputs:
    """One batch of these rows, padded on the left; pixels follow one another as processors do it."""
    length = max(row["input_ids"].shape[1] for row in rows)
    out: Inputs = {}
    for name in sorted({name for row in rows for name in row}):
        parts = [row[name] for row in rows if name in row]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            parts = [torch.nn.functional.pad(part, (length - part.shape[1], 0), value=0) for part in parts]
        out[name] = torch.cat(parts)
    return out


def words(length: int, seed: int) -> Tensor:
    """Random text, [1, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, VOCABULARY, (1, length), generator=generator)


def text_row(length: int, seed: int) -> Inputs:
    """A prompt of text."""
    ids = words(length, seed)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def text_rows() -> list[Inputs]:
    """Three prompts of text."""
    return [text_row(29, 1), text_row(41, 2), text_row(35, 3)]


def new_llama(dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    """Llama with grouped heads."""
    return _finish(LlamaForCausalLM, LlamaConfig(**{**TEXT, **changes})).to(dtype)


def new_qwen2(**changes: Any) -> Qwen2ForCausalLM:
    """Qwen2: biases on queries, keys and values."""
    return _finish(Qwen2ForCausalLM, Qwen2Config(**{**TEXT, **changes}))


def new_mixed() -> Qwen2ForCausalLM:
    """Qwen2 whose second and fourth layer slide over the last 8 tokens."""
    types = ["full_attention", "sliding_attention"] * 2
    return new_qwen2(num_hidden_layers=4, use_sliding_window=True, sliding_window=8, layer_types=types)


def new_sliding() -> MistralForCausalLM:
    """Mistral whose every layer slides: nothing for a policy to do."""
    return _finish(MistralForCausalLM, MistralConfig(**TEXT, sliding_window=8))


IMAGE_SIDE, PATCH = 16, 4  # LLaVA: (16 / 4) ** 2 image tokens for each picture


def new_llava() -> LlavaForConditionalGeneration:
    """LLaVA: a CLIP tower before a Llama."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIDE,
        "patch_size": PATCH,
        "projection_dim": 32,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(IMAGE_SIDE // PATCH) ** 2,
        pad_token_id=PAD,
    )
    return _finish(LlavaForConditionalGeneration, config)


def llava_row(before: int, images: int, after: int, seed: int) -> Inputs:
    """Text, pictures with a word behind each, text."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.full((1, (IMAGE_SIDE // PATCH) ** 2), IMAGE_TOKEN)
    parts = [words(before, seed)]
    for number in range(images):
        parts += [picture, words(1, 100 * seed + number)]
    ids = torch.cat([*parts, words(after, seed + 50)], dim=1)
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        row["pixel_values"] = torch.randn(images, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator)
    return row


def llava_rows() -> list[Inputs]:
    """One picture, two pictures, none."""
    return [llava_row(7, 1, 9, 1), llava_row(4, 2, 6, 2), llava_row(12, 0, 10, 3)]


def new_qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL: three-dimensional rotary positions."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
        "out_hidden_size": TEXT["hidden_size"],
        "fullatt_block_indexes": [1],
    }
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=VOCABULARY - 1,
        pad_token_id=PAD,
    )
    return _finish(Qwen2_5_VLForConditionalGeneration, config)


def qwen_vl_row(before: int, grids: Sequence[tuple[int, int]], after: int, seed: int) -> Inputs:
    """Text, pictures of so many patches down and across, text."""
    generator = torch.Generator().manual_seed(seed)
    parts = [words(before, seed)]
    for down, across in grids:
        parts += [torch.tensor([[IMAGE_START]]), torch.full((1, down * across // 4), IMAGE_TOKEN)]
    ids = torch.cat([*parts, words(after, seed + 50)], dim=1)
    row = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
    }
    if grids:
        patches = sum(down * across for down, across in grids)
        row["pixel_values"] = torch.randn(patches, 3 * 2 * 4 * 4, generator=generator)
        row["image_grid_thw"] = torch.tensor([[1, down, across] for down, across in grids])
    return row


def qwen_vl_rows() -> list[Inputs]:
    """A wide picture, two of different sizes, none."""
    return [
        qwen_vl_row(6, [(4, 10)], 9, 1),
        qwen_vl_row(5, [(8, 6), (4, 4)], 7, 2),
        qwen_vl_row(11, [], 10, 3),
    ]


LLAMA = Family("llama", new_llama, text_rows)
QWEN2 = Family("qwen2", new_qwen2, text_rows)
LLAVA = Family("llava", new_llava, llava_rows, vision=True)
QWEN_VL = Family("qwen2.5-vl", new_qwen_vl, qwen_vl_rows, vision=True)
MIXED = Family("qwen2-sliding", new_mixed, text_rows)
FAMILIES = [LLAMA, QWEN2, LLAVA, QWEN_VL]


def new_tokens(model: PreTrainedModel, inputs: Inputs, count: int = 12, **options: Any) -> Tensor:
    """The tokens that `generate` adds; greedy unless told otherwise."""
    torch.manual_seed(0)  # for sampling
    words_only = {"suppress_tokens": list(range(FIRST_WORD))}  # an image token would ask for another picture
    out = model.generate(**inputs, **{"max_new_tokens": count, "do_sample": False, **words_only, **options})
    return out[:, inputs["input_ids"].shape[1] :]


def tables(cache: PolicyCache) -> list[CacheView]:
    """The tables of a cache, one a layer under the policy, valid rows of each head in order of arrival."""
    return [_sorted(layer.store.view()) for layer in cache.session._layers]


def _sorted(view: CacheView) -> CacheView:
    last = torch.iinfo(torch.int64).max
    order = torch.where(view.valid, view.positions, last).argsort(-1)
    order = order[..., : int(view.valid.sum(-1).max())]
    wide = order[..., None]
    return replace(
        view,
        keys=view.keys.gather(2, wide.expand(-1, -1, -1, view.keys.shape[-1])),
        values=view.values.gather(2, wide.expand(-1, -1, -1, view.values.shape[-1])),
        positions=view.positions.gather(-1, order),
        valid=view.valid.gather(-1, order),
        columns={name: replace(c, data=c.data.gather(-1, order)) for name, c in view.columns.items()},
    )


def assert_same_tables(ours: PolicyCache, theirs: PolicyCache) -> None:
    """The same rows in every head; numbers to rounding, since the batches that made them may differ."""
    for mine, other in zip(tables(ours), tables(theirs), strict=True):
        assert torch.equal(mine.valid, other.valid)
        assert torch.equal(mine.positions[mine.valid], other.positions[other.valid])
        assert mine.columns.keys() == other.columns.keys()
        for name, column in mine.columns.items():
            torch.testing.assert_close(column.data[mine.valid], other.columns[name].data[mine.valid])
        torch.testing.assert_close(mine.keys[mine.valid], other.keys[mine.valid], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.values[mine.valid], other.values[mine.valid], atol=1e-4, rtol=1e-4)


def feed(model: PreTrainedModel, cache: Cache, inputs: Inputs, tokens: Tensor) -> Tensor:
    """A prompt and then these tokens [B, N], one by one; returns the logits after each, [B, N + 1, V]."""
    logits = [model(**inputs, past_key_values=cache, **_places(inputs["attention_mask"])).logits[:, -1]]
    if tokens.shape[1]:
        logits += continue_with(model, cache, inputs["attention_mask"], tokens).unbind(1)
    return torch.stack(logits, dim=1)


def continue_with(model: PreTrainedModel, cache: Cache, attention_mask: Tensor, tokens: Tensor) -> Tensor:
    """More tokens [B, N] after a prompt with this mask, one by one; the logits after each, [B, N, V]."""
    logits, before = [], cache.get_seq_length() - attention_mask.shape[1]
    for number, token in enumerate(tokens.split(1, dim=1), start=before + 1):
        mask = torch.nn.functional.pad(attention_mask, (0, number), value=1)
        places = _places(mask, last=1)
        logits.append(model(input_ids=token, attention_mask=mask, past_key_values=cache, **places).logits[:, -1])
    return torch.stack(logits, dim=1)


def _places(mask: Tensor, last: int = 0) -> Inputs:
    """Rotary positions as `generate` makes them: padding does not count."""
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -last:]}


def _finish(kind: type[Any], config: Any) -> Any:
    torch.manual_seed(7)
    return kind(config).eval()


def _reworded(ids: Tensor) -> Tensor:
    """Other words at the same places."""
    is_word = ids >= FIRST_WORD
    return torch.where(is_word, FIRST_WORD + (ids * 7 + 3) % (VOCABULARY - FIRST_WORD - 1), ids)
