"""Decode steps in series: against the batch until memory runs out, against the rows held, and of other models.

    python -m benchmarks.series result.json

Cases: ``batch``, ``rows``, and ``shape`` (grouped heads, long prompts). Gates are those of `benchmarks.decode`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import kvpolicy
from benchmarks.caches import KEEP, POLICIES, static, steady
from benchmarks.decoding import CHECKED, LAUNCHES, Request
from benchmarks.models import LLAMA, LLAVA, QWEN, SMALL, Shape
from benchmarks.stepping import Stepping
from benchmarks.suite import Suite

BEFORE = CHECKED + 2


@dataclass(frozen=True)
class Sizes:
    """What is asked, in tokens, batch rows and table rows."""

    base: Shape
    prompt: int
    new: int
    steps: int
    batches: tuple[int, ...]
    batch: int  # of the case ``rows``
    rows: tuple[int, ...]
    shapes: tuple[Shape, ...]
    prompts: tuple[int, ...]
    shape_batches: tuple[int, ...]


SIZES = {
    False: Sizes(
        base=LLAVA,
        prompt=1024,
        new=512,
        steps=32,
        batches=(1, 4, 16, 64, 128, 256, 512),
        batch=16,
        rows=(128, 307, 614, 1024, 1536, 3072),
        shapes=(LLAMA, QWEN),
        prompts=(8192, 32768),
        shape_batches=(1, 8),
    ),
    True: Sizes(
        base=SMALL,
        prompt=60,
        new=24,
        steps=4,
        batches=(1,),
        batch=2,
        rows=(48,),
        shapes=(SMALL,),
        prompts=(64,),
        shape_batches=(1,),
    ),
}


class Series:
    """The suite's arms."""

    def __init__(self, suite: Suite) -> None:
        self.steps, self.sizes = Stepping(suite), SIZES[suite.small]
        self.launch = suite.options.launch or ("CUDA graph" if suite.device.type == "cuda" else "compiled")

    def pair(self, case: dict[str, object], shape: Shape, request: Request, most: int) -> None:
        """The full cache, and Elastic Cache."""
        policy, few = POLICIES["elastic_cache"], round(KEEP * most)
        self.steps.arm(case, "full", request, static(most), self.launch, shape=shape, rows=most)
        make = steady(policy, most)
        self.steps.arm(case, "elastic_cache", request, make, self.launch, shape=shape, rows=few, policy=policy)

    def batch(self) -> None:
        """Throughput, until memory runs out."""
        sizes = self.sizes
        most = sizes.prompt + sizes.new
        for batch in sizes.batches:
            case = {"case": "batch", "model": sizes.base.model, "batch": batch, "prompt": sizes.prompt, "most": most}
            self.pair(case, sizes.base, Request(batch, sizes.prompt, BEFORE, sizes.steps), most)

    def rows(self) -> None:
        """As many slots without a policy as rows under one."""
        sizes, shape = self.sizes, self.sizes.base
        for rows in sizes.rows:
            case = {"case": "rows", "model": shape.model, "batch": sizes.batch, "rows_held": rows}
            request = Request(sizes.batch, rows - BEFORE - sizes.steps, BEFORE, sizes.steps)
            self.steps.arm(case, "StaticCache", request, static(rows), self.launch, shape=shape, rows=rows)
            policy = kvpolicy.streaming_llm(rows=rows)
            request = Request(sizes.batch, rows + rows // 4, BEFORE, sizes.steps)
            make = steady(policy, request.prompt + BEFORE + sizes.steps)
            self.steps.arm(case, "streaming_llm", request, make, self.launch, shape=shape, rows=rows, policy=policy)

    def shape(self) -> None:
        """Models whose rows are few bytes, at long prompts."""
        sizes = self.sizes
        for shape in sizes.shapes:
            for prompt in sizes.prompts:
                most = prompt + BEFORE + sizes.steps
                for batch in sizes.shape_batches:
                    case = {"case": "shape", "model": shape.model, "batch": batch, "prompt": prompt, "most": most}
                    self.pair(case, shape, Request(batch, prompt, BEFORE, sizes.steps), most)


def options(parser: argparse.ArgumentParser) -> None:
    """How steps are launched."""
    parser.add_argument("--launch", choices=tuple(LAUNCHES), help="default: CUDA graph; on a CPU: compiled")


def main(arguments: Sequence[str] | None = None) -> int:
    """All cases; the exit status."""
    with torch.no_grad():
        suite = Suite("series", __doc__, arguments, options)
        series = Series(suite)
        for case in (series.batch, series.rows, series.shape):
            case()
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
