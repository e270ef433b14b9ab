"""A record of one sample with its answer forced: what replays are made on."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import LogitsProcessorList

from ..simulate import Record, record
from .passes import Forcing
from .subject import Subject
from .task import Sample

__all__ = ["record_answer"]


def record_answer(subject: Subject, sample: Sample, answer: Sequence[int]) -> Record:
    """The sample alone under the full cache, with an answer of at least two tokens forced."""
    return record(
        subject.model,
        subject.encode([sample.parts]),
        new_tokens=len(answer) - 1,
        generation_config=subject.greedy(len(answer), stop=False),
        logits_processor=LogitsProcessorList([Forcing([answer])]),
    )
