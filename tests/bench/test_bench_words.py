from __future__ import annotations

import numpy as np
import pytest
from kvpolicy_bench import FULL, TASKS, TINY, World, encode
from kvpolicy_bench.assets import shapes
from kvpolicy_bench.processor import make_processor
from kvpolicy_bench.words import IMAGE, UNK
from transformers import AutoProcessor

WORLDS = pytest.mark.parametrize("world", [TINY, FULL], ids=["tiny", "full"])


@WORLDS
def test_words_are_different(world: World):
    assert len(set(world.vocabulary)) == len(world.vocabulary)


@WORLDS
def test_the_tokenizer_knows_every_word(world: World, tmp_path):
    make_processor(world).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    texts = [*shapes("train").questions, *shapes("train").answers, *shapes("test").questions]
    for task in TASKS:
        sample = task.draw(rng, world)
        texts += [sample.text.replace("<image>", ""), sample.answer]
    for text in texts:
        ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert UNK not in ids
        assert ids == world.ids(text).tolist()
        assert processor.tokenizer.decode(ids) == " ".join(text.split())


@WORLDS
def test_a_batch_is_padded_on_the_left(world: World):
    processor = make_processor(world)
    rng = np.random.default_rng(0)
    asked = [task.draw(rng, world) for task in TASKS]
    inputs = encode(processor, asked)
    pictures = [len(sample.images) for sample in asked]
    assert (inputs.input_ids == IMAGE).sum(1).tolist() == [number * world.image_tokens for number in pictures]
    assert inputs.pixel_values.shape == (sum(pictures), 3, world.side, world.side)
    assert inputs.attention_mask[:, -1].all()
