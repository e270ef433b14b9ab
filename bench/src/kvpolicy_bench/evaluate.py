"""Exact match of a model on every task, on scenes that it was not trained on, with plain `generate`.

    python -m kvpolicy_bench.evaluate [--model FOLDER] [--samples 200] [--styles google twitter]

Batches are padded on the left; decoding is greedy; an answer counts if it is right word for word. The interval after
each share is the 95% Wilson score interval. Twitter's emoji are a style that training never saw.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from .assets import Style
from .loading import MODEL, load, world_of
from .sample import Sample, encode
from .tasks import TASKS, Published, Task
from .wilson import wilson
from .world import World

__all__ = ["SEED", "Result", "answers", "evaluate", "samples", "table"]

SEED = 2_000_003  # far from the seeds of training and of what it holds out


@dataclass(frozen=True)
class Result:
    """How a model did on one task."""

    label: str
    style: Style
    right: int
    total: int
    longest: int  # words of the longest answer

    def __str__(self) -> str:
        low, high = wilson(self.right, self.total)
        share = self.right / self.total
        return (
            f"| {self.label} | {self.style} | {share:.1%} | [{low:.1%}, {high:.1%}] | {self.total} | {self.longest} |"
        )


def samples(task: Task, count: int, world: World, style: Style = "google", seed: int = SEED) -> list[Sample]:
    """The test set of a task: the same for every model, policy and machine, and in both styles."""
    rng = np.random.default_rng([seed, zlib.crc32(task.label.encode())])
    return [task.draw(rng, world, style) for _ in range(count)]


@torch.inference_mode()
def answers(model: Any, processor: Any, asked: Sequence[Sample]) -> list[str]:
    """What the model answers to a batch."""
    inputs = encode(processor, asked, model.device).to(model.dtype)
    longest = max(len(sample.answer.split()) for sample in asked) + 1  # and the end of the answer
    out = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def evaluate(
    model: Any, processor: Any, tasks: Iterable[Task], *, count: int, style: Style = "google", batch: int = 64
) -> Iterable[Result]:
    """The result of each task, one after another."""
    world = world_of(model)
    for task in tasks:
        asked = samples(task, count, world, style)
        right = 0
        for start in range(0, count, batch):
            some = asked[start : start + batch]
            said = answers(model, processor, some)
            right += sum(text == sample.answer for text, sample in zip(said, some, strict=True))
        longest = max(len(sample.answer.split()) for sample in asked)
        yield Result(task.label, style, right, count, longest)


def table(results: Iterable[Result]) -> Iterable[str]:
    """Lines of a Markdown table."""
    yield "| task | emoji | right | 95% interval | asked | longest answer |"
    yield "|---|---|---|---|---|---|"
    yield from map(str, results)


def main() -> None:
    """Print the table, line by line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=MODEL)
    options.add_argument("--samples", type=int, default=200, help="of each task")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--styles", nargs="+", choices=get_args(Style), default=list(get_args(Style)))
    options.add_argument("--tasks", nargs="+", default=[task.label for task in TASKS], help="for example at/grid")
    args = options.parse_args()
    model, processor = load(args.model)
    chosen = [task for task in TASKS if task.label in args.tasks]
    found = (
        result
        for style in args.styles
        for result in evaluate(
            model,
            processor,
            [task for task in chosen if style == "google" or task.name != Published.name],  # it has no emoji
            count=args.samples,
            style=style,
            batch=args.batch,
        )
    )
    for line in table(found):
        print(line, flush=True)


if __name__ == "__main__":
    main()
