from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from kvpolicy_bench import FULL, TASKS, TINY, World
from kvpolicy_bench.assets import shapes
from kvpolicy_bench.drawing import draw
from kvpolicy_bench.evaluate import evaluate, samples
from kvpolicy_bench.loading import load, world_of
from kvpolicy_bench.pictures import Pictures
from kvpolicy_bench.processor import make_processor
from kvpolicy_bench.situations import Book, Crowd, EasyVQA, Grid, Several
from kvpolicy_bench.words import EOS, IMAGE, NONE, ORDINALS
from train import model as sizes
from train import plan
from train.batches import HELD_OUT, LABELS, Recipe, batches, make_batch
from train.compose import Composer
from train.export import export, reopen
from train.loop import CHECKPOINT, LOG, Pace, train
from train.losses import costs
from train.masking import mask
from train.packing import pack
from train.run import Options, Run

CPU = torch.device("cpu")
FEW = plan.Mix(grid=1, photo=1, crowd=1, book=1, easy_vqa=1, several=4, times=1)
OPTIONS = Options(size="tiny", steps=4, seed=0, rate=1e-3, warm_up=2, easy=0.25)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(plan, "TINY", FEW)
    monkeypatch.setattr(sizes, "TINY", sizes.Size(32, 32, 1, 2, 32, 32, 2, 4, 2))


@pytest.mark.parametrize("world", [TINY, FULL], ids=["tiny", "full"])
def test_torch_draws_what_numpy_draws(world: World):
    rng = np.random.default_rng(0)
    situations = (Grid(), Grid(2), Crowd(), Book(), Several(2), EasyVQA("train"))
    pictures = Pictures.concatenate([situation.draw(world, 2, rng).pictures for situation in situations])
    composer = Composer(world, CPU)
    drawn = composer.draw(composer.parts(pictures)).numpy()
    for number in range(len(pictures)):
        expected = draw(world, pictures, number, split="train").astype(np.float32)
        assert np.abs(drawn[number] - expected).max() <= 1


def test_pixels_are_what_the_processor_makes_of_the_picture():
    pictures = Grid().draw(TINY, 1, np.random.default_rng(0)).pictures
    composer = Composer(TINY, CPU)
    expected = make_processor(TINY).image_processor(draw(TINY, pictures, 0), return_tensors="pt").pixel_values
    torch.testing.assert_close(composer.pixels(composer.parts(pictures)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", TASKS, ids=[task.label for task in TASKS])
def test_a_packed_prompt_is_what_the_processor_makes_of_it(task):
    sample = task.draw(np.random.default_rng(7), TINY)
    rng = np.random.default_rng(7)
    scenes = task.situation.draw(TINY, 1, rng)
    rows = pack(TINY, [(scenes, [(0, task.ask(TINY, scenes, rng))])])
    ids = make_processor(TINY)(images=sample.images, text=sample.text).input_ids[0]
    assert rows.ids[0][(rows.block[0] > -2) & (rows.task[0] < 0)].tolist() == ids
    assert TINY.text(rows.ids[0][rows.task[0] == 0]) == f"{sample.answer} <eos>"


def test_packed_questions_are_as_if_each_were_asked_alone():
    torch.manual_seed(0)
    model = sizes.make_model(TINY, sizes.TINY).eval().double()
    composer = Composer(TINY, CPU)
    for part in make_batch(Recipe(TINY, FEW, 0, 0), 0):
        rows, pixels = part.rows, composer.pixels(composer.parts(part.pictures)).double()
        ids, block, position = map(torch.from_numpy, (rows.ids, rows.block, rows.position))
        with torch.no_grad():
            image = torch.stack(tuple(model.get_image_features(pixel_values=pixels).pooler_output))
            embedded = model.get_input_embeddings()(ids).masked_scatter((ids == IMAGE)[..., None], image)
            packed = model.model.language_model(
                inputs_embeds=embedded, attention_mask=mask(block, torch.float64), position_ids=position
            ).last_hidden_state
        each = len(pixels) // len(ids)
        for row in range(len(ids)):
            for question in range(0, int(block[row].max()) + 1, 5):
                seen = (block[row] == -1) | (block[row] == question)
                with torch.no_grad():
                    alone = model.model(
                        input_ids=ids[row, seen][None], pixel_values=pixels[row * each : (row + 1) * each]
                    ).last_hidden_state[0]
                own = block[row, seen] == question
                torch.testing.assert_close(packed[row, seen][own], alone[own], atol=1e-9, rtol=0)


def test_what_counts_as_right_is_what_greedy_decoding_gives(few):
    run = Run(OPTIONS, CPU)
    part = make_batch(run.options.recipe, 0)[0]
    with torch.no_grad():
        cost = costs(run.model.eval(), Composer(TINY, CPU), part)
    assert cost.right.sum() == 0  # nothing is learned yet
    for label in LABELS:
        asked = sum(
            len(np.unique(part.rows.block[row][part.rows.task[row] == LABELS.index(label)]))
            for row in range(len(part.rows.task))
        )
        assert cost.asked[LABELS.index(label)] == asked


def test_bound_tokens_carry_the_words_that_they_belong_to():
    for part in make_batch(Recipe(TINY, FEW, 0, 0), 2):
        ids, block = part.rows.ids, part.rows.block
        expected, picture = {}, 0
        for row in range(len(ids)):
            words = [TINY.vocabulary[number] for number in ids[row][block[row] == -1]]
            ordinal, seen = None, 0
            for at, word in enumerate(words):
                if word in ORDINALS:
                    ordinal, seen = word, 0
                if word in TINY.names and words[at - 1] in TINY.codes:
                    expected[row * ids.shape[1] + at] = [words[at - 1], word]
                if word == "<image>" and ordinal:
                    cell = TINY.cell_of_token[seen]
                    found = part.pictures.objects[picture, cell]
                    name = TINY.names[found] if found >= 0 else "nothing"
                    expected[row * ids.shape[1] + at] = [ordinal, name, TINY.cells[cell]]
                    seen += 1
                    picture += seen == TINY.image_tokens
        found = {spot: TINY.text(words).split() for spot, *words in part.bound.T.tolist()}
        assert found == expected


@pytest.mark.parametrize("world", [TINY, FULL], ids=["tiny", "full"])
def test_tokens_on_a_shape_carry_what_it_is(world: World):
    pictures = EasyVQA("train").draw(world, 40, np.random.default_rng(0)).pictures
    composer = Composer(world, CPU)
    parts = composer.parts(pictures)
    words, cells = composer.words(parts)
    assert (cells == NONE).all()
    drawn = composer.draw(parts).numpy()
    tokens = world.side // world.patch
    told = 0
    for number, image in enumerate(drawn):
        ground = np.median(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
        blocks = (image != ground).any(-1).reshape(tokens, world.patch, tokens, world.patch).mean((1, 3)).ravel() > 0.5
        asked = shapes("train").asked
        answers = {shapes("train").answers[answer] for answer in asked[asked[:, 0] == pictures.shape[number], 2]}
        kind = answers & {"circle", "rectangle", "triangle"}
        expected = np.where(blocks, world.index[kind.pop()], NONE) if kind else np.full(tokens**2, NONE)
        np.testing.assert_array_equal(words[number], expected)
        told += (expected != NONE).any()
    assert told > 20


def test_shapes_add_to_the_alignment(few):
    run = Run(OPTIONS, CPU)
    composer = Composer(TINY, CPU)
    part = make_batch(Recipe(TINY, replace(FEW, easy_vqa=8), 0, 0), 0)[0]
    with torch.no_grad():
        both = costs(run.model.eval(), composer, part).alignment
        shapes_alone = costs(run.model, composer, replace(part, emoji=0.0)).alignment
        composer.shaped[:] = NONE
        emoji_alone = costs(run.model, composer, part).alignment
    assert shapes_alone > 0
    torch.testing.assert_close(both, shapes_alone + emoji_alone)


def test_weights_give_every_task_the_same_share():
    parts = make_batch(Recipe(TINY, FEW, 0, 0), 3)
    shares = sum(np.bincount(part.rows.task.ravel()[part.target], part.weight, minlength=len(LABELS)) for part in parts)
    np.testing.assert_allclose(shares, 1 / len(LABELS), rtol=1e-5)


def test_every_answer_ends():
    for part in make_batch(Recipe(TINY, FEW, 0, 0), 1):
        for row in range(len(part.rows.ids)):
            for question in range(part.rows.block[row].max() + 1):
                assert part.rows.ids[row][part.rows.block[row] == question][-1] == EOS


def test_batches_made_ahead_are_the_same():
    recipe = Recipe(TINY, FEW, 0, 2)
    here, ahead = (list(batches(recipe, 1, 4, workers)) for workers in (0, 1))
    for one, two in zip(here, ahead, strict=True):
        for mine, theirs in zip(one, two, strict=True):
            np.testing.assert_array_equal(mine.rows.ids, theirs.rows.ids)
            np.testing.assert_array_equal(mine.pictures.objects, theirs.pictures.objects)


def test_what_is_held_out_is_not_trained_on():
    recipe = Recipe(TINY, FEW, 0, 0)
    trained, held = make_batch(recipe, 0)[0], make_batch(replace(recipe, seed=HELD_OUT), 0)[0]
    assert not np.array_equal(trained.pictures.objects[0], held.pictures.objects[0])


def test_a_resumed_run_is_the_same_to_the_last_bit(few, tmp_path):
    def silent(line: str) -> None:
        pass

    pace = Pace(log_every=1, held_out_every=100)
    whole = Run(OPTIONS, CPU)
    assert train(whole, tmp_path / "whole", pace, silent)

    halves = Run(OPTIONS, CPU)
    while not train(halves, tmp_path / "halves", replace(pace, seconds=0.0), silent):
        halves = Run.load(tmp_path / "halves" / CHECKPOINT, CPU)

    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, halves.model.state_dict()[name]), name
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / name / LOG).read_text().splitlines()]
        for name in ("whole", "halves")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == OPTIONS.steps + 1


def test_a_loss_that_is_not_finite_leaves_the_checkpoint_alone(few, tmp_path):
    run = Run(OPTIONS, CPU)
    run.save(tmp_path / CHECKPOINT)
    torch.nn.init.constant_(run.model.get_input_embeddings().weight, float("nan"))
    with pytest.raises(FloatingPointError, match="checkpoint kept"):
        train(run, tmp_path, Pace(seconds=0.0), lambda line: None)
    assert Run.load(tmp_path / CHECKPOINT, CPU).step == 0


def test_what_is_exported_is_what_from_pretrained_reads(few, tmp_path):
    run = Run(OPTIONS, CPU)
    export(run, tmp_path, commit="0" * 40, held_out={})
    model, processor = load(tmp_path)
    assert world_of(model) == TINY
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert all(path.stat().st_size < 16e6 for path in tmp_path.iterdir())
    assert reopen(tmp_path, CPU, steps=9).options == replace(run.options, steps=9)
    again = reopen(tmp_path, CPU)
    assert (again.options, again.step) == (run.options, run.step)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name].half().float()), name
    describe = next(task for task in TASKS if task.label == "describe/photo")
    (result,) = evaluate(model, processor, [describe], count=2)
    assert (result.right, result.total) == (0, 2)
    assert str(result).startswith("| describe/photo | google | 0.0% | [0.0%, 65.8%] | 2 |")
    assert [sample.answer for sample in samples(describe, 2, TINY)] == [
        sample.answer for sample in samples(describe, 2, TINY, "twitter")
    ]


def test_a_new_optimizer_is_warmed_up_again():
    options = replace(OPTIONS, steps=1000, warm_up=10)
    assert options.rate_at(500, restarted=500) == pytest.approx(options.rate_at(500) / 10)
    assert options.rate_at(509, restarted=500) == options.rate_at(509)
    assert options.rate_at(1000) == 0


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="Hint"):
        load(tmp_path)
