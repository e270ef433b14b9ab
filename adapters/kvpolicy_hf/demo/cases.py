"""What the demo asks: drawn scenes with four questions each, or the user's own picture and question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from kvpolicy import KVPolicyError

from .prompts import Prompt
from .scenes import NOTHING, TASKS, Kind, Scene, draw

__all__ = ["Case", "PictureError", "drawn_cases", "own_case"]


class PictureError(KVPolicyError):
    """A file is not a picture that can be read."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question of the demo.

    Attributes:
        prompt: the picture, the question and its answer, if it is known.
        title: what the picture shows; cases with one title are shown in one table.
        kind: ``grid`` or ``photo``; empty for the user's own picture.
        task: which of the four questions; empty for the user's own.
    """

    prompt: Prompt
    title: str
    kind: str = ""
    task: str = ""


def drawn_cases(seed: int, *, pictures: int, question: str | None = None) -> list[Case]:
    """Every question about newly drawn scenes, a grid and a photograph in turn.

    Args:
        seed: the same seed draws the same scenes and questions.
        pictures: how many of each kind.
        question: ask only this about each picture; its right answer is not known then.
    """
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(pictures):
        for kind in get_args(Kind):
            scene = draw(rng, kind)
            title = _describe(scene, number + 1)
            asked = [scene.ask(task, rng) for task in TASKS]
            if question is None:
                cases += [Case(Prompt.about(scene, one), title, kind, one.task) for one in asked]
            else:
                before = f"password {scene.password} ."
                cases.append(Case(Prompt(Image.fromarray(scene.image), question, before), title, kind))
    return cases


def own_case(path: Path, question: str) -> Case:
    """The user's picture and question; the right answer is not known.

    Raises:
        PictureError: if the file cannot be read as a picture.
    """
    try:
        with Image.open(path) as picture:
            return Case(Prompt(picture.convert("RGB"), question), path.name)
    except (UnidentifiedImageError, OSError) as error:
        raise PictureError(f"{str(path)!r} is not a picture that can be read: {error}") from error


def _describe(scene: Scene, number: int) -> str:
    objects = sum(name != NOTHING for name in scene.objects)
    if scene.kind == "grid":
        return f"grid {number}: {objects} objects, every image token matters"
    return f"photo {number}: {objects} object{'s'[: objects > 1]} on a photograph, most image tokens do not matter"
