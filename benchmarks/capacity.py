"""The largest batch that fits: a prompt and as many new tokens as the cache is made for, its peaks included.

    python -m benchmarks.capacity result.json

A batch fits if its prompt, and decode steps with the cache as full as it will be, raise no out-of-memory error. Found
by bisection with a few steps; the largest is then served to its last token, and made smaller by a fiftieth until that
goes through. ``--gib`` lets the process have less memory than there is, which makes for smaller batches, sooner.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import kvpolicy
from benchmarks.caches import KEEP, POLICIES, Make, dynamic, policed, static, steady
from benchmarks.decoding import LAUNCHES, Request, kv_bytes, served, teacher_forced
from benchmarks.models import LLAVA, SMALL, prompt, random_model, weight_bytes
from benchmarks.suite import Hold, Suite
from benchmarks.timing import Peak

PROMPT, NEW = {False: 1024, True: 40}, {False: 512, True: 24}
MOST = {False: 1024, True: 4}  # batch rows that are tried at most
STEPS = 3


@dataclass(frozen=True)
class Arm:
    """One kind of cache.

    Attributes:
        name: of the arm.
        make: makes one.
        due: makes one that has to give the same logits.
        wrong: makes one that gives others.
        fill: brings one that grows to its last rows.
    """

    name: str
    make: Make
    due: Make
    wrong: Make
    fill: Callable[[Any], None] | None = None


class Capacity:
    """The suite's arms."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.shape = SMALL if suite.small else LLAVA
        self.prompt, self.new = PROMPT[suite.small], NEW[suite.small]
        if suite.options.gib is not None:
            whole = torch.cuda.get_device_properties(suite.device).total_memory
            torch.cuda.set_per_process_memory_fraction(suite.options.gib * 2**30 / whole)
        self.model = random_model(self.shape, suite.device)

    def arms(self) -> None:
        """Full caches, and a policy's."""
        most, policy = self.prompt + self.new, POLICIES["elastic_cache"]
        full, local = (dynamic, policed(kvpolicy.streaming_llm(keep=KEEP)))
        plain, kept = policed(policy), policed(policy, "torch")
        case = {"case": "capacity", "model": self.shape.model, "prompt": self.prompt, "most": most, "keep": KEEP}
        arms = (  # each with a cache that has to give the same logits, and one that gives others
            Arm("DynamicCache", full, static(most), local, self.fill),
            Arm("StaticCache", static(most), full, local),  # is full from the start
            Arm("elastic_cache", plain, kept, full),
            Arm("elastic_cache, compile_decode", steady(policy, most), kept, full),
        )
        for arm in arms:
            self.suite.arm(case, arm.name, lambda hold, arm=arm: self.largest(hold, arm))

    def largest(self, hold: Hold, arm: Arm) -> dict[str, Any]:
        """The batch, and what it holds at its peaks."""
        self.gate(hold, arm)
        limit = MOST[self.suite.small]
        fits, too_many, batch = 0, limit + 1, min(8, limit)
        while too_many - fits > max(1, fits // 50):
            if self.tried(lambda n=batch: self.short(arm, n)):
                fits = batch
            else:
                too_many = batch
            batch = min(2 * fits, limit) if fits and too_many > limit else (fits + too_many) // 2
        while fits:
            found = self.tried(lambda n=fits: self.whole(arm.make, n))
            if found:
                return {"batch": fits, "weight_bytes": weight_bytes(self.model), **found}
            fits -= max(1, fits // 50)
        raise torch.OutOfMemoryError("not even a single request fits")

    def gate(self, hold: Hold, arm: Arm) -> None:
        """A single request, run eagerly."""
        due, wrong = (
            teacher_forced(self.model, make(self.model), self.shape, self.prompt, self.suite.device)
            for make in (arm.due, arm.wrong)
        )
        request = Request(1, self.prompt, 14, 2)
        served(self.model, self.shape, lambda: arm.make(self.model), request, LAUNCHES["eager"], hold, due, wrong)

    def tried(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What it finds, or None if memory runs out."""
        try:
            return run()
        except torch.OutOfMemoryError:
            return None
        finally:
            gc.collect()
            if self.suite.device.type == "cuda":
                torch.cuda.empty_cache()

    def short(self, arm: Arm, batch: int) -> dict[str, Any]:
        """The prompt, and some steps with the cache full."""
        cache = arm.make(self.model)
        ids = prompt(self.shape, batch, self.prompt, self.suite.device)
        self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        if arm.fill is not None:
            arm.fill(cache)
        for n in range(STEPS):
            position = torch.full((batch, 1), self.prompt + n, device=self.suite.device)
            self.model(input_ids=ids[:, :1], past_key_values=cache, position_ids=position)
        return {"fits": True}

    def whole(self, make: Make, batch: int) -> dict[str, Any]:
        """To the last token, eagerly."""
        device = self.suite.device
        at_rest = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        cache = make(self.model)
        ids = prompt(self.shape, batch, self.prompt, device)
        with Peak(device, at_rest) as prefilling:
            self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        left = kv_bytes(cache)
        with Peak(device, at_rest) as decoding:
            for n in range(self.new):
                position = torch.full((batch, 1), self.prompt + n, device=device)
                self.model(input_ids=ids[:, :1], past_key_values=cache, position_ids=position)
        return {
            "prefill_peak_bytes": prefilling.bytes,
            "prefill_kv_bytes": left,
            "decode_peak_bytes": decoding.bytes,
            "kv_bytes": kv_bytes(cache),
        }

    def fill(self, cache: Any) -> None:
        """Random rows up to the last steps, layer by layer as a step would append them."""
        for index, layer in enumerate(cache.layers):
            batch, heads, _, dim = layer.keys.shape
            rows = torch.randn(*(batch, heads, self.new - STEPS, dim), device=layer.keys.device, dtype=layer.keys.dtype)
            cache.update(rows, rows, index)


def options(parser: argparse.ArgumentParser) -> None:
    """A smaller machine."""
    parser.add_argument("--gib", type=float, help="GiB of GPU memory that the process may have")


def main(arguments: Sequence[str] | None = None) -> int:
    """All arms; the exit status."""
    with torch.no_grad():
        suite = Suite("capacity", __doc__, arguments, options)
        Capacity(suite).arms()
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
