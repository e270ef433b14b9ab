"""How likely a model finds the text that follows: perplexity under teacher forcing."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal, final

import numpy as np

from ..errors import EvaluationError
from ..subject import Subject
from ..task import Sample

__all__ = ["Continuation", "texts_of"]

SECTION = 8  # windows of a text that count as one group: what stands near each other speaks of the same thing


@final
@dataclass(frozen=True, slots=True)
class Continuation:
    """Text is cut into a prompt and what follows it, which is forced token by token.

    A model may have seen the text in training: compare policies with the full cache, not models with each other.

    Args:
        source: ``"pydoc"``, the help topics of Python's standard library (PSF licence), or a text file, plain or
            ``.gz``.
        prompt: tokens of each prompt.
        score_tokens: tokens whose likelihood is measured after it.
    """

    source: str = "pydoc"
    prompt: int = 512
    score_tokens: int = 64

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("score_tokens", self.score_tokens)):
            if type(value) is not int or value < 1:
                raise EvaluationError(f"Continuation({name}={value!r}): {name} must be an integer >= 1.")

    @property
    def headline(self) -> Literal["likelihood"]:
        """The likelihood kept."""
        return "likelihood"

    def samples(self, subject: Subject, count: int, seed: int, /) -> Sequence[Sample]:
        """Windows of text that do not overlap, in an order drawn by the seed; near ones of one text are one group.

        Raises:
            EvaluationError: if the text has not so many windows, or cannot be read.
        """
        length = self.prompt + self.score_tokens
        windows = []
        for name, text in texts_of(self.source):
            ids = subject.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            starts = range(0, len(ids) - length + 1, length)
            windows += [(f"{name}/{n // SECTION}", ids[start : start + length]) for n, start in enumerate(starts)]
        if len(windows) < count:
            raise EvaluationError(
                f"{self!r} has {len(windows)} windows of {length} tokens, and {count} samples are asked for. "
                f"Hint: fewer samples, shorter windows, or a longer text."
            )
        order = np.random.default_rng(seed).permutation(len(windows))[:count]
        begin = [] if subject.tokenizer.bos_token_id is None else [subject.tokenizer.bos_token_id]
        return [
            Sample(((*begin, *ids[: self.prompt]),), tuple(ids[self.prompt :]), group=name)
            for name, ids in (windows[place] for place in order)
        ]

    def score(self, said: str, sample: Sample, /) -> float:
        """Nothing is generated, and nothing scored."""
        raise EvaluationError(f"{self!r} generates no answers.")


def texts_of(source: str) -> Iterator[tuple[str, str]]:
    """Name and text of each document of a source.

    Raises:
        EvaluationError: if it cannot be read.
    """
    if source == "pydoc":
        yield from sorted(topics.items())
        return
    path = Path(source).expanduser()
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise EvaluationError(f"text {source!r} cannot be read: {error}. Hint: 'pydoc', or a file in UTF-8.") from error
    for number, chapter in enumerate(text.split("\n\n\n")):
        yield f"{path.name}:{number}", chapter
