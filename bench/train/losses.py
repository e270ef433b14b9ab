"""What a part of a step costs: the answers, and how far tokens are from the words that they should carry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kvpolicy_bench.words import NONE
from transformers import LlavaForConditionalGeneration

from .batches import LABELS, Batch
from .compose import Composer, Parts
from .masking import mask

__all__ = ["ALIGNMENT", "BINDING", "Costs", "costs"]

ALIGNMENT = 0.5  # the weight of the alignment loss
BINDING = 0.25  # the weight of the binding loss
BOUND = 1  # layers of the text decoder after which tokens are to carry what they belong to


@dataclass(frozen=True)
class Costs:
    """Of one part of a step.

    Attributes:
        loss: what to descend.
        nats: float32 [labels], the weighted loss of each task's answers.
        alignment: the alignment loss; that of emoji is weighted by the part's share of their pictures.
        binding: the binding loss.
        asked: float32 [labels], how many questions each task asked.
        right: float32 [labels], how many of them greedy decoding answers word for word.
    """

    loss: torch.Tensor
    nats: torch.Tensor
    alignment: torch.Tensor
    binding: torch.Tensor
    asked: torch.Tensor
    right: torch.Tensor


def costs(model: LlavaForConditionalGeneration, composer: Composer, batch: Batch) -> Costs:
    """Run the model over one part of a step.

    The alignment loss pulls each RMS-normalised image token towards the tied embeddings of its object's name and of
    its cell, or of the shape that it lies on. Without it, a model of this size hardly learns to read its image tokens
    at all. The binding loss does the same after the first layer of the decoder: a name in a code book is to carry its
    code by then, and a token of one of several pictures which picture that is, each beside what it carries already:
    bound words that drown a token's own cannot be looked up. Without it, looking up what is bound to a word is by far
    the slowest thing to learn.
    """
    device, table = composer.device, model.get_input_embeddings().weight
    rows = batch.rows
    ids, block, position, task, target, ends, spots, weight, bound = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (
            rows.ids,
            rows.block,
            rows.position,
            rows.task,
            batch.target,
            batch.ends,
            batch.spots,
            batch.weight,
            batch.bound,
        )
    )
    parts = composer.parts(batch.pictures)
    image = torch.stack(tuple(model.model.get_image_features(pixel_values=composer.pixels(parts)).pooler_output))
    embedded = F.embedding(ids, table)
    embedded = embedded.flatten(0, 1).index_copy(0, spots, image.flatten(0, 1).to(embedded.dtype)).view_as(embedded)
    low = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else embedded.dtype
    out = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=mask(block, low),
        position_ids=position,
        use_cache=False,
        output_hidden_states=True,
    )
    logits = (out.last_hidden_state.flatten(0, 1).index_select(0, target - 1) @ table.T).float()
    wanted = ids.flatten().index_select(0, target)
    every = F.cross_entropy(logits, wanted, reduction="none") * weight
    alignment = _alignment(composer, parts, image, table, batch.emoji)
    carried = out.hidden_states[BOUND].flatten(0, 1).index_select(0, bound[0])
    scores = (F.rms_norm(carried.float(), carried.shape[-1:]) @ table.T).float()
    words = [F.cross_entropy(scores, word, ignore_index=NONE, reduction="sum") for word in bound[1:]]
    binding = torch.stack(words).sum() / bound.shape[1]
    task = task.flatten().index_select(0, target)
    with torch.no_grad():
        nats = torch.zeros(len(LABELS), device=device).index_add(0, task, every)
        # Greedy decoding gives the wanted answer if and only if each of its words is the likeliest after those before.
        wrong = (logits.argmax(-1) != wanted).cumsum(0).index_select(0, ends)
        clean = torch.diff(wrong, prepend=wrong.new_zeros(1)) == 0
        asked, right = (
            torch.zeros(len(LABELS), device=device).index_add(0, task.index_select(0, ends), count.float())
            for count in (torch.ones_like(clean), clean)
        )
    loss = every.sum() + ALIGNMENT * alignment + BINDING * binding
    return Costs(loss, nats, alignment.detach(), binding.detach(), asked, right)


def _alignment(
    composer: Composer, parts: Parts, image: torch.Tensor, table: torch.Tensor, share: float
) -> torch.Tensor:
    """Mean over the emoji pictures, times the part's share of them, and mean over the shapes, small ones as large."""
    scores = (F.rms_norm(image.float(), image.shape[-1:]) @ table.T).float().transpose(1, 2)
    words = composer.words(parts)
    names, cells = (F.cross_entropy(scores, word, reduction="none", ignore_index=NONE) for word in words)
    emoji = parts["shape"] < 0
    shown = ((names + cells).mean(1) * emoji).sum() / emoji.sum().clamp(min=1)
    known = (words[0] != NONE).sum(1) * ~emoji
    shapes = (names.sum(1) / known.clamp(min=1) * (known > 0)).sum() / (known > 0).sum().clamp(min=1)
    return share * shown + shapes
