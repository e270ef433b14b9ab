from __future__ import annotations

import numpy as np
import pytest
import reading
from kvpolicy_bench import FULL, TASKS, TINY, Task, World
from kvpolicy_bench.assets import shapes

EMOJI = [task for task in TASKS if task.name != "easy-vqa"]
WORLDS = pytest.mark.parametrize("world", [TINY, FULL], ids=["tiny", "full"])


def label(task: Task) -> str:
    return task.label


def test_labels_are_different():
    assert len({task.label for task in TASKS}) == len(TASKS)


@WORLDS
@pytest.mark.parametrize("task", TASKS, ids=label)
def test_the_same_state_gives_the_same_sample(task: Task, world: World):
    one, two = (task.draw(np.random.default_rng(5), world) for _ in range(2))
    assert (one.text, one.answer) == (two.text, two.answer)
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in two.images]
    other = task.draw(np.random.default_rng(6), world)
    assert [image.tobytes() for image in one.images] != [image.tobytes() for image in other.images]


@WORLDS
@pytest.mark.parametrize("task", EMOJI, ids=label)
def test_answers_are_what_the_pixels_and_the_text_say(task: Task, world: World):
    rng = np.random.default_rng(0)
    for _ in range(8 if world is TINY else 2):
        sample = task.draw(rng, world)
        assert reading.answer(sample.parts, sample.question) == {sample.answer}


def test_published_questions_have_their_published_answers():
    rng = np.random.default_rng(0)
    task = next(task for task in TASKS if task.name == "easy-vqa")
    for _ in range(8):
        sample = task.draw(rng)
        assert (sample.question, sample.answer.removeprefix("answer ")) in reading.published(sample.images[0])


def test_easy_vqa_is_whole():
    sizes = {"train": (4000, 38_575), "test": (1000, 9_673)}
    for split, (images, asked) in sizes.items():
        assert (len(shapes(split).images), len(shapes(split).asked)) == (images, asked)
    assert len(shapes("test").answers) == 13


@pytest.mark.parametrize("task", EMOJI, ids=label)
def test_the_other_style_asks_the_same(task: Task):
    ours, theirs = (task.draw(np.random.default_rng(3), FULL, style) for style in ("google", "twitter"))
    assert (ours.text, ours.answer) == (theirs.text, theirs.answer)
    assert ours.images[0].tobytes() != theirs.images[0].tobytes()


def test_a_full_grid_takes_a_long_answer():
    describe = next(task for task in TASKS if task.label == "describe/grid")
    assert len(describe.draw(np.random.default_rng(0)).answer.split()) == 128
