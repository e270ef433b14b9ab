"""The tasks: what they draw is drawn again, belongs together, and is what it claims to be."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from of_mine import Echo
from PIL.Image import Image

from kvpolicy_hf.evaluate import TASKS, EvaluationError, Sample, Subject
from kvpolicy_hf.evaluate.tasks import BenchQuestion, Continuation, EmojiQuestion, Needle, tasks_of


class Words:
    """A tokenizer of one token a word."""

    bos_token_id = None

    def __call__(self, text: Any, **_: object) -> Any:
        ids = [[hash(word) % 1000 for word in one.split()] for one in ([text] if isinstance(text, str) else text)]
        return type("Encoded", (), {"input_ids": ids[0] if isinstance(text, str) else ids})()


READER = Subject(model=None, processor=Words(), name="reader")


def seen(sample: Sample) -> tuple[object, ...]:
    """A sample as what compares."""
    parts = tuple(np.asarray(part).tobytes() if isinstance(part, Image) else part for part in sample.parts)
    return parts, sample.answer, sample.new_tokens, sample.group


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_draws_the_same_and_more_only_adds(name: str, demo: Subject) -> None:
    if isinstance(TASKS[name], BenchQuestion):
        pytest.importorskip("kvpolicy_bench")  # the sdist is without it
    subject = demo if isinstance(TASKS[name], (BenchQuestion, EmojiQuestion)) else READER
    draw: Callable[..., Any] = TASKS[name].samples
    first, longer, other = (
        [seen(sample) for sample in draw(subject, count, seed)] for count, seed in ((3, 1), (5, 1), (3, 2))
    )
    assert first == longer[:3]
    assert first != other
    assert len(longer) == 5


@pytest.mark.parametrize("kind", ["grid", "photo"])
@pytest.mark.parametrize("asks", ["at", "where", "row", "password"])
def test_pictures_go_with_a_password_before_and_a_question_after(kind: Any, asks: Any, demo: Subject) -> None:
    task = EmojiQuestion(kind, asks)
    for sample in task.samples(demo, 4, 0):
        before, picture, after = sample.parts
        assert isinstance(before, str)
        assert before.startswith("password ")
        assert isinstance(picture, Image)
        assert picture.size == (128, 128)
        assert isinstance(after, str)
        assert task.score(str(sample.answer), sample) == 1.0
        assert task.score("a1 nothing at all", sample) == 0.0


def test_windows_of_text_do_not_overlap_and_follow_each_other(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(100)]
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(" ".join(words).encode()))
    ids = Words()(" ".join(words)).input_ids
    samples = Continuation(str(tmp_path / "text.txt.gz"), prompt=12, score_tokens=4).samples(READER, 6, 0)
    starts = []
    for sample in samples:
        (prompt,), answer = sample.parts, sample.answer
        start = next(n for n in range(0, 96, 16) if ids[n : n + 12] == list(prompt))
        assert ids[start + 12 : start + 16] == list(answer or ())
        starts.append(start)
    assert sorted(starts) == [0, 16, 32, 48, 64, 80]
    with pytest.raises(EvaluationError, match="has 6 windows of 16 tokens, and 7 samples are asked for"):
        Continuation(str(tmp_path / "text.txt.gz"), prompt=12, score_tokens=4).samples(READER, 7, 0)


def test_windows_of_a_text_that_stand_near_each_other_are_one_group(tmp_path: Path) -> None:
    words = " ".join(str(n) for n in range(20 * 8))
    (tmp_path / "two.txt").write_text(f"{words}\n\n\n{words}", encoding="utf-8")
    samples = Continuation(str(tmp_path / "two.txt"), prompt=6, score_tokens=2).samples(READER, 40, 0)
    groups = Counter(sample.group for sample in samples)
    assert groups == {f"two.txt:{text}/{part}": 8 if part < 2 else 4 for text in (0, 1) for part in (0, 1, 2)}


@pytest.mark.parametrize("length", [256, 1024])
def test_a_needle_is_told_once_and_asked_for(length: int) -> None:
    depths = []
    for sample in Needle(length).samples(READER, 40, 0):
        (text,) = sample.parts
        assert isinstance(text, str)
        (told,) = re.findall(r"The secret number of the (\w+) is (\d{5})\.", text)
        assert f"What is the secret number of the {told[0]}?" in text.splitlines()[-1]
        assert (sample.answer, text.count(told[1])) == (told[1], 1)
        assert 0.75 * length < len(text.split()) + len(text.splitlines()) < length
        depths.append(len(text[: text.index("The secret number")].split()) / len(text.split()))
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    assert Needle(length).score(f"It is {told[1][:2]},{told[1][2:]}.", sample) == 1.0
    assert Needle(length).score("It is 1234.", sample) == 0.0


def test_a_task_of_ones_own_goes_by_its_name() -> None:
    assert tasks_of(["pydoc", "of_mine:Echo"], READER) == {"pydoc": Continuation(), "Echo": Echo()}
    assert tasks_of({"mine": Echo()}, READER) == {"mine": Echo()}
    assert set(tasks_of(None, READER)) == {"pydoc", "needle-512", "needle-1k"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tasks_of(["grid-it"], READER), "no task 'grid-it'; there are: grid-at"),
        (lambda: tasks_of([], READER), "tasks is empty"),
        (lambda: tasks_of(["pydoc", "pydoc"], READER), "names one twice"),
        (lambda: tasks_of(["of_mine:LoudValues"], READER), "is a LoudValues, which is no task"),
        (lambda: TASKS["grid-at"].samples(READER, 1, 0), "reader takes text alone"),
        (lambda: EmojiQuestion("grid", "why"), "asks is one of at, where, row, password"),  # type: ignore[arg-type]
        (lambda: TASKS["bench-grid-at"].samples(READER, 1, 0), "reader takes text alone"),
        (lambda: BenchQuestion("at/book"), "label is one of at/grid"),
        (lambda: BenchQuestion(style="apple"), "style is one of google, twitter"),  # type: ignore[arg-type]
        (lambda: Needle(10), "must be an integer >= 128"),
        (lambda: Needle(200_000).samples(READER, 1, 0), "too few for haystacks"),
        (lambda: Continuation(prompt=0), "prompt must be an integer >= 1"),
        (lambda: Continuation("nowhere.txt").samples(READER, 1, 0), "'nowhere.txt' cannot be read"),
        (lambda: Sample(()), "at least one part"),
        (lambda: Sample(("a",)), "nothing to measure"),
        (lambda: Sample(("a",), new_tokens=-1), "new_tokens must be an integer >= 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(make: Callable[[], object], words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        make()
