"""Train the small LLaVA that `kvpolicy demo` ships: one command, seeded, two CPU cores.

    python scripts/train_demo_model.py [--steps 4000] [--out adapters/kvpolicy_hf/demo/assets]

What made it learn (all of it needed): an alignment loss that pulls each RMS-normalised image token towards the tied
embeddings of its object's name and of its cell; single-token names and cells; tied embeddings; several questions an
image, each seeing only the image and itself; rows that are read cell by cell, naming the cell; and questions that end
in the word they are about, so that one lookup answers them (with a question mark behind it the model did not learn).
`scripts/measure_demo_accuracy.py` then measures the accuracy, on layouts drawn from another seed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kvpolicy_hf.demo.scenes import ASSETS, CELLS, GRID, NAMES, NOTHING, SIDE, Scene, draw

PATCH = 16
TOKENS = (SIDE // PATCH) ** 2  # 64 image tokens
ASKED = ("at", "where", "row", "at", "where", "row", "at", "password")  # of every image
QUESTIONS = len(ASKED)
WIDTH = 12  # tokens of the longest question with its answer
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
WORDS = ("password", ".", "what", "is", "at", "where", "the", "read", "row", "a", "b", "c", "d", NOTHING)


def make_processor() -> LlavaProcessor:
    """A word-level tokenizer over the world's few words, and CLIP's image processor."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS, *CELLS, *NAMES))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    pixels = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def make_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """About 1.3 million parameters: CLIP ViT, two layers; Llama, four layers, four query and two key/value heads."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


class Batch:
    """Images with their packed questions; every question sees the prefix, the image and itself."""

    def __init__(self, scenes: list[Scene], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> None:
        pixels = np.stack([scene.image for scene in scenes]).astype(np.float32) / 127.5 - 1.0
        self.pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        image = tokenizer.convert_tokens_to_ids("<image>")
        rows, labels = [], []
        for scene in scenes:
            prefix = tokenizer(f"password {scene.password} .").input_ids + [image] * TOKENS
            ids, wanted = list(prefix), [-100] * len(prefix)
            for task in ASKED:
                question = scene.ask(task, rng)
                asked = tokenizer(question.text, add_special_tokens=False).input_ids
                answer = [*tokenizer(question.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                fill = WIDTH - len(asked) - len(answer)
                ids += asked + answer + [tokenizer.pad_token_id] * fill
                wanted += [-100] * len(asked) + answer + [-100] * fill
            rows.append(ids)
            labels.append(wanted)
        self.ids, self.labels = torch.tensor(rows), torch.tensor(labels)
        names = tokenizer.convert_tokens_to_ids
        side, per_cell = SIDE // PATCH, SIDE // PATCH // GRID
        cell_of_token = [(t // side // per_cell) * GRID + t % side // per_cell for t in range(TOKENS)]
        self.token_names = torch.tensor([[names(s.objects[c]) for c in cell_of_token] for s in scenes])
        self.token_cells = torch.tensor([names(CELLS[c]) for c in cell_of_token]).expand(len(scenes), -1)


def packed_layout(prefix: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask [1, 1, N, N] and positions [1, N] of a prefix with QUESTIONS blocks that do not see each other."""
    total = prefix + QUESTIONS * WIDTH
    block = torch.cat([torch.full((prefix,), -1), torch.arange(QUESTIONS).repeat_interleave(WIDTH)])
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    mask = causal & ((block[None] == -1) | (block[None] == block[:, None]))
    positions = torch.cat([torch.arange(prefix), prefix + torch.arange(WIDTH).repeat(QUESTIONS)])
    return mask[None, None], positions[None]


def losses(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Answer loss, alignment loss, and for the log the nats that each kind of answer costs."""
    table = model.get_input_embeddings().weight
    image = model.model.get_image_features(pixel_values=batch.pixels).pooler_output
    image = torch.stack(tuple(image))
    embedded = model.get_input_embeddings()(batch.ids)
    embedded = embedded.masked_scatter((batch.ids == model.config.image_token_id)[..., None], image)
    start = int((batch.ids[0] == model.config.image_token_id).nonzero()[-1]) + 1
    mask, positions = packed_layout(start)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=mask.expand(len(embedded), -1, -1, -1),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    logits = hidden[:, :-1] @ table.T
    wanted = batch.labels[:, 1:]
    every = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="none")
    answers = every.sum() / (wanted != -100).sum()
    blocks = every.detach().reshape(len(embedded), -1)[:, start - 1 :].reshape(len(embedded), QUESTIONS, WIDTH)
    aligned = F.rms_norm(image, image.shape[-1:]) @ table.T
    alignment = F.cross_entropy(aligned.flatten(0, 1), batch.token_names.flatten()) + F.cross_entropy(
        aligned.flatten(0, 1), batch.token_cells.flatten()
    )
    return answers, alignment, dict(zip(ASKED, blocks.sum(-1).mean(0).tolist(), strict=True))


def main() -> None:
    """Train, then save model and processor the way `from_pretrained` reads them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=4000)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=ASSETS)
    args = options.parse_args()

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    processor = make_processor()
    model = make_model(processor).train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * max(0.0, 1 - step / args.steps)
    )
    began = time.perf_counter()
    for step in range(args.steps):
        scenes = [draw(rng, "grid" if number % 2 else "photo") for number in range(args.batch)]
        answers, alignment, costs = losses(model, Batch(scenes, processor.tokenizer, rng))
        optimizer.zero_grad(set_to_none=True)
        (answers + 0.5 * alignment).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps - 1:
            seconds = time.perf_counter() - began
            print(f"step {step:5d}  answers {answers:.4f}  alignment {alignment:.4f}  {seconds:.0f} s  ", end="")
            print(" ".join(f"{task} {nats:.2f}" for task, nats in costs.items()), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
