"""Questions about the demo's pictures: emoji on a full grid, or a few of them on a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
from PIL import Image

from ...demo.scenes import Kind, draw
from ...demo.scenes import Task as Asked
from .. import metrics
from ..subject import Subject
from ..task import Sample
from ._pictures import check_named, check_sees

__all__ = ["EmojiQuestion"]

UNSEEN = 1_000_003  # far from the seed of the training run
LONGEST = 10  # tokens: a row names four cells and their objects, and then ends


@final
@dataclass(frozen=True, slots=True)
class EmojiQuestion:
    """One kind of question about one kind of picture, as the demo's model has learned to answer.

    Args:
        kind: ``"grid"``, where every image token matters, or ``"photo"``, where most do not.
        asks: ``"at"`` (what is in a cell), ``"where"`` (in which cell is an object), ``"row"`` (read out four cells),
            or ``"password"`` (a word before the picture).
    """

    kind: Kind = "photo"
    asks: Asked = "where"

    def __post_init__(self) -> None:
        check_named("EmojiQuestion", "kind", self.kind, get_args(Kind))
        check_named("EmojiQuestion", "asks", self.asks, get_args(Asked))

    @property
    def headline(self) -> Literal["correct"]:
        """Exact match."""
        return "correct"

    def samples(self, subject: Subject, count: int, seed: int, /) -> Sequence[Sample]:
        """Pictures that the model has not seen, one question each.

        Raises:
            EvaluationError: if the model takes text alone.
        """
        check_sees(self, subject)
        rng = np.random.default_rng((UNSEEN, seed))
        drawn = []
        for _ in range(count):
            scene = draw(rng, self.kind)
            question = scene.ask(self.asks, rng)
            parts = (f"password {scene.password} .", Image.fromarray(scene.image), question.text)
            drawn.append(Sample(parts, question.answer, LONGEST))
        return drawn

    def score(self, said: str, sample: Sample, /) -> float:
        """1.0 for the right words."""
        return metrics.exact(said, str(sample.answer))
