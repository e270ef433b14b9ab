"""kvpress on the setting of `benchmarks.decode` and `benchmarks.prefill`, beside baselines that those have too.

    python -m benchmarks.peers result.json    (with kvpress 0.5.5 installed, and transformers below 5.3)

A press is held to the number of rows that it leaves, and one that acts on the prompt to the logits that it gives a
request alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from benchmarks.decoding import LAUNCHES, Request, kv_bytes, served, teacher_forced
from benchmarks.models import LLAVA, SMALL, prompt, random_model, weight_bytes
from benchmarks.suite import Hold, Suite
from benchmarks.timing import Peak

KEEP = 0.2
REQUEST = {False: Request(16, 1024, 224, 64, warm=True), True: Request(2, 60, 14, 4, warm=True)}
NEW = {False: 512, True: 24}
LENGTHS = {False: (1024, 4096, 16384, 32768), True: (80,)}


@dataclass(frozen=True)
class Arm:
    """A press.

    Attributes:
        name: its recipe's name in kvpolicy first, where there is one.
        press: makes it, from the rows that it is to leave after a token, where it acts while decoding.
        eager: it needs the model's attention weights, so eager attention.
        decodes: it acts while decoding, and leaves the prompt as it is.
    """

    name: str
    press: Callable[[int], Any]
    eager: bool = False
    decodes: bool = False


def arms() -> list[Arm]:
    """Those that do what recipes of kvpolicy do; kvpress is imported only now, so that baselines run without it."""
    import kvpress

    def snapkv(rows: int) -> Any:
        return kvpress.SnapKVPress(compression_ratio=1 - KEEP, window_size=32)

    return [
        Arm("snapkv: SnapKVPress", snapkv),
        Arm("MergingPress over SnapKVPress", lambda rows: kvpress.MergingPress(press=snapkv(rows))),
        Arm(
            "h2o: ObservedAttentionPress",
            lambda rows: kvpress.ObservedAttentionPress(compression_ratio=1 - KEEP),
            eager=True,
        ),
        Arm(
            "k_norm: DecodingPress over KnormPress",
            lambda rows: kvpress.DecodingPress(
                base_press=kvpress.KnormPress(),
                compression_interval=1,
                target_size=rows,
                hidden_states_buffer_size=0,
            ),
            decodes=True,
        ),
    ]


class Peers:
    """The suite's arms."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.shape = SMALL if suite.small else LLAVA
        self.model = random_model(self.shape, suite.device)
        self.request = REQUEST[suite.small]
        self.most = self.request.prompt + NEW[suite.small]

    def arms(self) -> None:
        """Baselines, then presses."""
        request, most = self.request, self.most
        self.table = {"case": "table", "model": self.shape.model, "batch": request.batch}
        self.table |= {"prompt": request.prompt, "most": most}
        self.suite.arm(self.table, "DynamicCache, eager", lambda hold: self.served(hold, self.dynamic, "eager"))
        for launch in ("eager", "compiled"):
            self.suite.arm(
                self.table,
                f"StaticCache, {launch}",
                lambda hold, launch=launch: self.served(hold, self.static, launch),
            )
        lengths = LENGTHS[self.suite.small]
        for length in lengths:
            self.suite.arm(self.case(length), "DynamicCache", lambda hold, n=length: self.prefilled(n, None))
        for arm in arms():
            self.suite.arm(self.table, f"{arm.name}, eager", lambda hold, arm=arm: self.decoded(hold, arm))
            for length in () if arm.decodes else lengths:
                self.suite.arm(self.case(length), arm.name, lambda hold, arm=arm, n=length: self.pressed(hold, arm, n))

    def case(self, length: int) -> dict[str, Any]:
        """A prompt alone."""
        return {"case": "prefill", "model": self.shape.model, "batch": 1, "prompt": length}

    def dynamic(self) -> Any:
        """Presses work on this one."""
        return DynamicCache(config=self.model.config)

    def static(self) -> Any:
        """All slots from the start."""
        return StaticCache(config=self.model.config, max_cache_len=self.most)

    def forced(self, press: Any = None) -> Tensor:
        """Logits of a request alone."""
        with press(self.model) if press else contextlib.nullcontext():
            return teacher_forced(self.model, self.dynamic(), self.shape, self.request.prompt, self.suite.device)

    def served(self, hold: Hold, make: Callable[[], Any], launch: str) -> dict[str, Any]:
        """A baseline. It has to give the full cache's logits, and not those of a prompt cut short."""
        due = self.forced()
        wrong = due.roll(1, 0)  # each step's logits belong to the next step
        found = served(self.model, self.shape, make, self.request, LAUNCHES[launch], hold, due, wrong)
        rows = self.request.prompt + self.request.before if launch == "eager" else self.most
        return {"launch": launch, "rows": rows, "floor_ms": self.floor(rows), **found}

    def decoded(self, hold: Hold, arm: Arm) -> dict[str, Any]:
        """Decode steps after, or under, a press."""
        left = int(KEEP * self.request.prompt)
        rows = round(KEEP * self.most) if arm.decodes else left + self.request.before + self.request.timed // 2
        with self.attention(arm):
            full, press, request = self.forced(), arm.press(rows), self.request
            caches: list[Any] = []

            def make() -> Any:
                caches[:] = [self.dynamic()]
                return caches[0]

            # Norms of keys tie in bfloat16: alone, a request may lose other rows than in a batch.
            due = None if arm.decodes else self.forced(press)
            with press(self.model):
                found = served(self.model, self.shape, make, request, LAUNCHES["eager"], hold, due, full)
        end = rows if arm.decodes else left + request.before + request.timed
        hold("rows held in the end", abs(caches[0].layers[0].keys.shape[2] - end), 1)
        return {"launch": "eager", "rows": rows, "floor_ms": self.floor(rows), **found}

    def pressed(self, hold: Hold, arm: Arm, length: int) -> dict[str, Any]:
        """A prompt under a press."""
        with self.attention(arm), arm.press(0)(self.model):
            found = self.prefilled(length, arm)
        hold("rows that are left", abs(found.pop("rows") - KEEP * length), 1)
        return found

    def prefilled(self, length: int, arm: Arm | None) -> dict[str, Any]:
        """Times of whole passes, each with a fresh cache."""
        prompts = list(prompt(self.shape, 3, length, self.suite.device).split(1))

        def once(ids: Tensor) -> Any:
            cache = self.dynamic()
            self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            return cache

        with Peak(self.suite.device) as peak:
            cache = once(prompts[0])
        left = {"peak_bytes": peak.bytes, "kv_bytes": kv_bytes(cache)}
        if arm is not None:
            left["rows"] = cache.layers[0].keys.shape[2]
        del cache  # its rows are no part of the next one's peak
        return {"ms": self.suite.timed(once, prompts, seconds=1.0, fewest=3, most=20), **left}

    @contextlib.contextmanager
    def attention(self, arm: Arm) -> Any:
        """Eager attention, where the press needs it."""
        if arm.eager:
            self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation("sdpa")

    def floor(self, rows: int) -> float:
        """Milliseconds in which weights and rows can be read."""
        itemsize = self.model.dtype.itemsize
        read = weight_bytes(self.model) + self.request.batch * rows * self.shape.row_bytes(itemsize)
        return float(read / self.suite.ceilings["copy_gb_s"] / 1e6)


def main(arguments: Sequence[str] | None = None) -> int:
    """All arms; the exit status."""
    with torch.no_grad():
        suite = Suite("peers", __doc__, arguments)
        Peers(suite).arms()
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
