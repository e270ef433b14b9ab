"""Where the time goes: what the host launches for a prompt and for a decode step, and what the device works for it.

    python -m benchmarks.launches result.json

A pass whose device time is well below its time is waiting for the host: fewer launches make it faster, not faster
kernels. Each policy is held to its logits first: on a prompt to those of the plain cache, at a step to those of the
torch backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.caches import POLICIES, Make, dynamic, policed
from benchmarks.decoding import NOISE, distance, teacher_forced
from benchmarks.models import LLAVA, SMALL, prompt, random_model
from benchmarks.prefill import LOGITS
from benchmarks.profiled import launched, most
from benchmarks.suite import Hold, Suite

PROMPTS = {False: (1024, 4096), True: (40,)}
BATCH, HELD = {False: 16, True: 2}, {False: 1024, True: 40}  # of the decode step
SHOWN = 8  # kernels that take most of the device's time


class Launches:
    """The suite's arms."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.shape = SMALL if suite.small else LLAVA
        self.model = random_model(self.shape, suite.device)
        self.makes: Mapping[str, Make] = {"DynamicCache": dynamic, **{n: policed(p) for n, p in POLICIES.items()}}

    def arms(self) -> None:
        """Prompts, then a step."""
        small = self.suite.small
        for length in PROMPTS[small]:
            case = {"case": "launches", "pass": "prompt", "model": self.shape.model, "batch": 1, "prompt": length}
            for name in self.makes:
                self.suite.arm(case, name, lambda hold, n=length, name=name: self.prompted(hold, name, n))
        case = {"case": "launches", "pass": "step", "model": self.shape.model, "batch": BATCH[small]}
        for name in self.makes:
            self.suite.arm(case | {"prompt": HELD[small]}, name, lambda hold, name=name: self.stepped(hold, name))

    def prompted(self, hold: Hold, name: str, length: int) -> dict[str, Any]:
        """A whole prompt, with a fresh cache."""
        ids = prompt(self.shape, 1, length, self.suite.device)

        def once(make: Make) -> Any:
            return self.model(input_ids=ids, past_key_values=make(self.model), logits_to_keep=1).logits

        if name in POLICIES:
            off = distance(once(self.makes[name]), once(dynamic))
            hold("logits of the last token against the plain cache", off, LOGITS)
        return self.looked_at(lambda: once(self.makes[name]))

    def stepped(self, hold: Hold, name: str) -> dict[str, Any]:
        """One eager decode step of a batch."""
        device, batch, held = self.suite.device, BATCH[self.suite.small], HELD[self.suite.small]
        if name in POLICIES:
            made, due = (
                teacher_forced(self.model, policed(POLICIES[name], backend)(self.model), self.shape, held, device)
                for backend in (None, "torch")
            )
            hold("logits of a request alone against the torch backend", distance(made, due), NOISE)
        cache = self.makes[name](self.model)
        ids = prompt(self.shape, batch, held, device)
        self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)

        def once() -> None:
            position = torch.full((batch, 1), cache.get_seq_length(), device=device)
            self.model(input_ids=ids[:, :1], past_key_values=cache, position_ids=position)

        return self.looked_at(once)

    def looked_at(self, once: Callable[[], object]) -> dict[str, Any]:
        """The time of a pass, and under the profiler its launches and what they take on the device."""
        times = self.suite.timed(lambda _: once(), [None], fewest=5, most=20)
        kernels = launched(once, self.suite.device)
        return {
            "ms": times,
            "launches": len(kernels),
            "launches_a_layer": len(kernels) / self.shape.layers,
            "device_ms": sum(microseconds for _, microseconds in kernels) / 1000,
            "most": most(kernels, SHOWN),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """All passes; the exit status."""
    with torch.no_grad():
        suite = Suite("launches", __doc__, arguments)
        Launches(suite).arms()
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
