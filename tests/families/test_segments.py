"""Which tokens are an image, a video or a sound comes out of the inputs, for every family that has them."""

from __future__ import annotations

import checks
import encoder_decoder
import pytest
import text
import torch
import vision
from family import Family, padded

import kvpolicy
from kvpolicy import AUDIO, IMAGE, TEXT, VIDEO, PolicyError
from kvpolicy_hf import PolicyCache, enable, segments

BY_NAME = {family.name: family for family in vision.FAMILIES}
every = pytest.mark.parametrize("family", vision.FAMILIES, ids=repr)


@every
def test_of_each_prompt(family: Family) -> None:
    model = family.new()
    for inputs, due in zip(family.rows(), family.segments(), strict=True):
        assert torch.equal(segments(inputs, model)[0], due)


@every
def test_of_a_padded_batch(family: Family) -> None:
    """Padding is text. A prompt may hold several images, and another none."""
    found = segments(family.batch(), family.new())
    due = family.segments()
    assert torch.equal(found, torch.cat([padded(row[None], found.shape[1] - len(row), right=False) for row in due]))


@every
def test_they_come_into_the_table(family: Family) -> None:
    model, inputs = family.new(), family.batch()
    enable(model)
    cache = PolicyCache(model, kvpolicy.full(), inputs=inputs)
    checks.forward(model, inputs, cache)
    for _, view in checks.tables(family, cache):
        assert torch.equal(view.columns["segment"].data[:, 0], segments(inputs, model))


def test_every_kind_is_met() -> None:
    kinds = {family.name: torch.cat(family.segments()).unique().tolist() for family in vision.FAMILIES}
    assert kinds.pop("Qwen2-Audio") == [TEXT, AUDIO]
    assert kinds.pop("Mllama") == [TEXT]
    assert {name for name, kind in kinds.items() if kind == [TEXT, IMAGE, VIDEO]} == {
        "Qwen2-VL",
        "Qwen2.5-VL",
        "Qwen3-VL",
    }
    assert all(IMAGE in kind for kind in kinds.values())


def test_of_a_language_model() -> None:
    family = text.FAMILIES[0]
    found = segments(family.batch(), family.new())
    assert found.shape == family.batch()["input_ids"].shape
    assert not found.any()


def test_of_an_encoder_decoder() -> None:
    """The cache holds the decoder's tokens: what it is given, or the one that it starts from."""
    family = encoder_decoder.FAMILIES[0]
    model, inputs = family.new(), family.batch()
    assert segments(inputs, model).tolist() == [[TEXT]] * 3
    started = {**inputs, "decoder_input_ids": torch.ones(3, 4, dtype=torch.int64)}
    assert segments(started, model).tolist() == [[TEXT] * 4] * 3
    with pytest.raises(PolicyError, match=r"need decoder_input_ids of shape \[batch, tokens\]"):
        segments({**inputs, "decoder_input_ids": torch.ones(4)}, model)


def test_an_image_that_no_token_stands_for() -> None:
    llava = BY_NAME["LLaVA"]
    pictured, _, plain = llava.rows()
    inputs = {**plain, "pixel_values": pictured["pixel_values"]}
    with pytest.raises(PolicyError, match=r"pixel_values.*LlavaForConditionalGeneration names {'image': 2}.*segments="):
        segments(inputs, llava.new())
    with pytest.raises(PolicyError, match=r"pixel_values.*LlamaForCausalLM names no such token"):
        segments(inputs, text.FAMILIES[0].new())


def test_zeros_are_no_image() -> None:
    """So processors fill up a batch of which some rows have fewer."""
    idefics = BY_NAME["Idefics3"]
    plain = {"input_ids": torch.full((1, 5), 20), "pixel_values": torch.zeros(1, 2, 3, vision.SIDE, vision.SIDE)}
    assert not segments(plain, idefics.new()).any()
