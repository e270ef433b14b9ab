"""Vision-language models, and one that listens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from family import DECODER, PLACEHOLDERS, START, VOCABULARY, Family, Inputs, Media, Prompt
from torch import Tensor

from kvpolicy import AUDIO, IMAGE, VIDEO

SIDE, PATCH = 16, 4  # of a picture, in pixels; (16 / 4) ** 2 patches
PATCHES = (SIDE // PATCH) ** 2
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
CLIP = {"model_type": "clip_vision_model", "projection_dim": 32, **TOWER}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **TOWER}
PIXTRAL = {"model_type": "pixtral", "head_dim": 16, **TOWER}
LLAMA = {"model_type": "llama", **DECODER}
HEAD = {"head_dim": 12, "query_pre_attn_scalar": 12}
IMAGE_INDEX = {"image_token_index": PLACEHOLDERS[IMAGE]}
IMAGE_ID = {"image_token_id": PLACEHOLDERS[IMAGE]}
SEE_EACH_OTHER = "tokens of an image see each other, and scores follow"


FRAMES, BANDS = 16, 8  # of a sound


def one_two_none(tokens: int, size: tuple[int, ...] = (), **options: Any) -> list[Prompt]:
    """Prompts with one picture, two and none."""
    picture = Media(tokens, size, **options)
    return [(6, picture, 5), (3, picture, 2, picture, 4), (13,)]


def media_of(prompt: Prompt, kind: int = IMAGE) -> list[Media]:
    return [part for part in prompt if isinstance(part, Media) and part.kind == kind]


def pictures(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Square pictures."""
    count = len(media_of(prompt))
    return {"pixel_values": torch.randn(count, 3, SIDE, SIDE, generator=generator)} if count else {}


def tiled(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Pictures in a small version and in tiles of SIDE x SIDE."""
    sizes = [part.size for part in media_of(prompt)]
    tiles = max((1 + down * across for down, across in sizes), default=0)
    if not sizes:
        return {}
    pixels = torch.zeros(len(sizes), 3, 3, SIDE, SIDE)
    pixels[:, :tiles] = torch.randn(len(sizes), tiles, 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes) * SIDE}


def tile(down: int, across: int) -> Media:
    """A picture in tiles: its small version, and rows of patches that end in a newline."""
    side = SIDE // PATCH
    return Media(PATCHES + down * side * (across * side + 1), (down, across))


TILED: list[Prompt] = [(6, tile(1, 1), 5), (3, tile(1, 2), 2, tile(2, 1), 4), (13,)]
PINPOINTS = {"image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]}


def any_size(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Pictures of any size, padded to the largest: SIDE x SIDE."""
    sizes = [part.size for part in media_of(prompt)]
    if not sizes:
        return {}
    pixels = torch.randn(len(sizes), 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes) * PATCH}


def grids(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Pictures and videos as lists of patches, for the Qwen-VL models."""
    kinds = torch.zeros_like(ids)
    for kind, token in PLACEHOLDERS.items():
        kinds[ids == token] = kind
    out: Inputs = {"mm_token_type_ids": kinds.int()}
    for kind, pixels, grid in (
        (IMAGE, "pixel_values", "image_grid_thw"),
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        sizes = torch.tensor([part.size for part in media_of(prompt, kind) if part.size])
        if len(sizes):
            out[pixels] = torch.randn(int(sizes.prod(-1).sum()), 3 * 2 * PATCH**2, generator=generator)
            out[grid] = sizes
    return out


def grid(frames: int, down: int, across: int, kind: int = IMAGE) -> Media:
    """Four neighbouring patches become one token."""
    return Media(frames * down * across // 4, (frames, down, across), kind, lead=True)


# The last prompt holds a video beside a picture.
GRIDS: list[Prompt] = [(6, grid(1, 4, 6), 5), (3, grid(1, 4, 4), 2, grid(1, 2, 6), 4), (13,)]
FILMED: list[Prompt] = [*GRIDS, (3, grid(1, 2, 4), 2, grid(2, 4, 4, VIDEO), 5)]


# Here every frame has a start token of its own, behind the time in words.
TIMED: list[Prompt] = [*GRIDS, (5, Media(4, (2, 4, 4), VIDEO, lead=True), 2, Media(4, (), VIDEO, lead=True), 5)]


def qwen_vl(name: str, kind: str, *, prompts: list[Prompt] = FILMED, notes: str = "", **changes: Any) -> Family:
    """Three-dimensional rotary positions."""
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    tokens = {
        "image_token_id": PLACEHOLDERS[IMAGE],
        "video_token_id": PLACEHOLDERS[VIDEO],
        "vision_start_token_id": START,
        "vision_end_token_id": VOCABULARY - 1,
    }
    config = getattr(hf, kind.replace("ForConditionalGeneration", "Config"))
    text = {**DECODER, "rope_parameters": rope, **changes.pop("text", {})}
    return Family(
        name,
        getattr(hf, kind),
        lambda: config(vision_config={**vision, **changes}, text_config=dict(text), **tokens),
        prompts,
        grids,
        notes=notes,
    )


def composed(
    name: str,
    kind: str,
    tokens: int | list[Prompt],
    media: Callable[[Prompt, Tensor, torch.Generator], Inputs] = pictures,
    *,
    text: dict[str, Any] = LLAMA,
    about: dict[str, Any] | None = None,
    **options: Any,
) -> Family:
    """A vision tower before a language model, with as many tokens for each picture."""
    config = getattr(hf, kind.replace("ForConditionalGeneration", "Config"))
    prompts = one_two_none(tokens) if isinstance(tokens, int) else tokens

    def new() -> Any:
        return config(**copy.deepcopy({"text_config": text, **options}))  # which it keeps, and changes

    return Family(name, getattr(hf, kind), new, prompts, media, **(about or {}))


# Without any picture at all these models do not take `pixel_values`.
STACKED: list[Prompt] = [*one_two_none(PATCHES // 4)[:2], (9, Media(PATCHES // 4), 4)]


def stacked(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Pictures by row of the batch, [1, 2, 3, SIDE, SIDE]; one that is all zeros is none."""
    count = len(media_of(prompt))
    pixels = torch.zeros(1, 2, 3, SIDE, SIDE)
    pixels[:, :count] = torch.randn(1, count, 3, SIDE, SIDE, generator=generator)
    return {"pixel_values": pixels}


def told_apart(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Pictures, and which tokens are theirs."""
    return {**pictures(prompt, ids, generator), "token_type_ids": (ids == PLACEHOLDERS[IMAGE]).long()}


def all_prefix(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Pictures before a text that they see."""
    return {**pictures(prompt, ids, generator), "token_type_ids": torch.zeros_like(ids)}


def crossed(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Pictures of one tile, and which of them each token sees: the latest before it."""
    sees = (ids == PLACEHOLDERS[IMAGE]).cumsum(-1)[0]
    mask = torch.zeros(1, len(sees), 2, 1, dtype=torch.int64)
    for number in range(2):
        mask[0, :, number, 0] = sees == number + 1
    count = len(media_of(prompt))
    pixels = torch.zeros(1, 2, 1, 3, SIDE, SIDE)
    pixels[:, :count] = torch.randn(1, count, 1, 3, SIDE, SIDE, generator=generator)
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[1] * count + [0] * (2 - count)]),
        "aspect_ratio_mask": torch.ones(1, 2, 1, dtype=torch.int64),
        "cross_attention_mask": mask,
    }


def sounds(prompt: Prompt, ids: Tensor, generator: torch.Generator) -> Inputs:
    """Sounds of up to FRAMES frames; four of them become one token."""
    lengths = torch.tensor([part.size[0] for part in media_of(prompt, AUDIO)])
    if not len(lengths):
        return {}
    frames = torch.randn(len(lengths), BANDS, FRAMES, generator=generator)
    return {"input_features": frames, "feature_attention_mask": (torch.arange(FRAMES) < lengths[:, None]).long()}


FAMILIES = [
    composed(
        "LLaVA", "LlavaForConditionalGeneration", PATCHES, vision_config=CLIP, image_seq_length=PATCHES, **IMAGE_INDEX
    ),
    composed(
        "Pixtral",
        "LlavaForConditionalGeneration",
        [(6, Media(8, (2, 4)), 5), (3, Media(12, (4, 3)), 2, Media(4, (2, 2)), 4), (13,)],
        any_size,
        vision_config=PIXTRAL,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **IMAGE_INDEX,
    ),
    composed(
        "LLaVA-NeXT", "LlavaNextForConditionalGeneration", TILED, tiled, vision_config=CLIP, **PINPOINTS, **IMAGE_INDEX
    ),
    composed(
        "LLaVA-OneVision",
        "LlavaOnevisionForConditionalGeneration",
        TILED,
        tiled,
        text={"model_type": "qwen2", **DECODER},
        vision_config=SIGLIP,
        video_token_index=PLACEHOLDERS[VIDEO],
        **PINPOINTS,
        **IMAGE_INDEX,
    ),
    qwen_vl(
        "Qwen2-VL",
        "Qwen2VLForConditionalGeneration",
        notes="positions of three dimensions",
        embed_dim=32,
        hidden_size=48,
        mlp_ratio=2,
    ),
    qwen_vl(
        "Qwen2.5-VL",
        "Qwen2_5_VLForConditionalGeneration",
        notes="positions of three dimensions",
        out_hidden_size=48,
        window_size=16,
        fullatt_block_indexes=[1],
    ),
    qwen_vl(
        "Qwen3-VL",
        "Qwen3VLForConditionalGeneration",
        prompts=TIMED,
        notes="positions of three dimensions",
        text={"head_dim": 12},
        out_hidden_size=48,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    ),
    composed(
        "InternVL",
        "InternVLForConditionalGeneration",
        PATCHES // 4,
        text={"model_type": "qwen2", **DECODER},
        vision_config={**TOWER, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        image_seq_length=PATCHES // 4,
        **IMAGE_ID,
    ),
    composed("Idefics3", "Idefics3ForConditionalGeneration", STACKED, stacked, vision_config=TOWER, **IMAGE_ID),
    composed("SmolVLM", "SmolVLMForConditionalGeneration", STACKED, stacked, vision_config=TOWER, **IMAGE_ID),
    composed(
        "Mistral 3",
        "Mistral3ForConditionalGeneration",
        [(6, Media(2, (2, 4)), 5), (3, Media(4, (4, 4)), 2, Media(1, (2, 2)), 4), (13,)],
        any_size,
        text={"model_type": "mistral", **DECODER, "sliding_window": None},
        vision_config=PIXTRAL,
        **IMAGE_INDEX,
    ),
    composed(
        "Gemma 3",
        "Gemma3ForConditionalGeneration",
        4,
        told_apart,
        text={
            "model_type": "gemma3_text",
            **DECODER,
            **HEAD,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        about={"layers": (0, 2), "notes": f"{SEE_EACH_OTHER}; sliding layers keep transformers' own cache"},
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        boi_token_index=START,
        eoi_token_index=START,
        **IMAGE_INDEX,
    ),
    composed(
        "PaliGemma",
        "PaliGemmaForConditionalGeneration",
        PATCHES,
        all_prefix,
        text={"model_type": "gemma", **DECODER, "head_dim": 12},
        about={"notes": "all tokens of a prompt see each other, and scores follow"},
        vision_config={**SIGLIP, "num_image_tokens": PATCHES, "projection_dim": 48},
        projection_dim=48,
        **IMAGE_INDEX,
    ),
    composed(
        "Mllama",
        "MllamaForConditionalGeneration",
        1,
        crossed,
        text={
            "model_type": "mllama_text_model",
            **DECODER,
            "bos_token_id": 5,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        about={
            "layers": (0, 2),
            "as_text": True,
            "notes": "cross-attention layers keep transformers' own cache; images have no rows under the policy",
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 64,
            "image_size": SIDE,
            "patch_size": PATCH,
            "max_num_tiles": 1,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
        },
        **IMAGE_INDEX,
    ),
    composed(
        "Qwen2-Audio",
        "Qwen2AudioForConditionalGeneration",
        [(6, Media(4, (16,), AUDIO), 5), (3, Media(3, (12,), AUDIO), 2, Media(4, (16,), AUDIO), 4), (13,)],
        sounds,
        text={"model_type": "qwen2", **DECODER},
        audio_config={
            "num_mel_bins": BANDS,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 32,
            "max_source_positions": FRAMES // 2,
        },
        audio_token_index=PLACEHOLDERS[AUDIO],
    ),
]
