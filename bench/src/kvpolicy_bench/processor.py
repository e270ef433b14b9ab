"""A word-level tokenizer over the world's words, and CLIP's image processor: what `from_pretrained` reads back."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .words import BOS, SPECIAL
from .world import World

__all__ = ["make_processor"]


def make_processor(world: World) -> LlavaProcessor:
    """The processor of a model of this world. Pictures are not resized: they come in the right size."""
    words = Tokenizer(models.WordLevel(world.index, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    pad, bos, eos, unk, image = SPECIAL
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        additional_special_tokens=[image],
        padding_side="left",
    )
    pixels = CLIPImageProcessorPil(
        size={"height": world.side, "width": world.side},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=world.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
