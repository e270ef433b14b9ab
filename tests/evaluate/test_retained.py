"""Pictures of what policies keep of a prompt: patches where it has a picture, else its tokens."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

import kvpolicy
from kvpolicy import CacheView, Step
from kvpolicy_hf.evaluate import TASKS, Arm, Sample, arms_of
from kvpolicy_hf.evaluate import retained as drawing
from kvpolicy_hf.evaluate.retained import MOST, draw_retained, smallest
from kvpolicy_hf.evaluate.run import subject_of
from kvpolicy_hf.evaluate.subject import Subject


class Wrong:
    """A scorer whose scores are no numbers that rank."""

    def score(self, view: CacheView, step: Step) -> Any:
        return view.positions


@pytest.fixture(scope="module")
def demo() -> Subject:
    return subject_of("demo")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The drawing functions that were called, and with what."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def noted(name: str) -> None:
        draw = getattr(drawing, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls.append((name, {"history": arguments[0], **named}))
            return draw(*arguments, **named)

        monkeypatch.setattr(drawing, name, call)

    for name in ("patches", "tokens_by_layers"):
        noted(name)
    return calls


def test_a_prompt_with_a_picture_shows_its_patches(demo: Subject, drawn: list[tuple[str, dict[str, Any]]]) -> None:
    sample = TASKS["photo-where"].samples(demo, 1, 0)[0]
    made = draw_retained(demo, "it", sample, arms_of(["h2o", "tova"], [0.5, 0.25]))
    assert [caption for caption, _ in made] == [
        f"What {name} at a budget of 25% leaves of it, layer by layer" for name in ("h2o", "tova")
    ]
    for _, data in made:
        Image.open(BytesIO(data)).verify()
    assert [name for name, _ in drawn] == ["patches", "patches"]
    for _, told in drawn:
        history = told["history"]
        assert history.fate(0, after=told["after"]).own.sum(axis=1).mean() == round(0.25 * told["after"])


def test_a_prompt_of_text_shows_its_tokens(demo: Subject, drawn: list[tuple[str, dict[str, Any]]]) -> None:
    made = draw_retained(demo, "it", Sample(("where is the dog",), new_tokens=1), arms_of(["h2o"], [0.5]))
    assert len(made) == 1
    assert [name for name, _ in drawn] == ["tokens_by_layers"]


def test_who_is_drawn() -> None:
    arms = arms_of(["h2o", "tova", "snapkv(rows=9)"], [0.2, 0.5])
    assert [(arm.label, arm.keep) for arm in smallest(arms)] == [("h2o", 0.2), ("tova", 0.2), ("snapkv(rows=9)", None)]


def test_a_policy_that_refuses_is_passed_over(demo: Subject) -> None:
    sample = Sample(("where is the dog",), new_tokens=1)
    refused = arms_of({"refused": Wrong()}, [0.2])[1]
    many = [Arm(f"h2o {n}", 0.5, kvpolicy.h2o(keep=0.5)) for n in range(MOST + 2)]
    assert len(draw_retained(demo, "it", sample, many)) == MOST
    captions = [caption for caption, _ in draw_retained(demo, "it", sample, [refused, *many[:1]])]
    assert captions == ["What h2o 0 at a budget of 50% leaves of it, layer by layer"]
