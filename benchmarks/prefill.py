"""Prompts: what a policy adds to the time and the peak memory of the first pass.

    python -m benchmarks.prefill result.json

Each policy is first tried on a short prompt: it must leave the logits of the last token as they are, must hold exactly
its budget, and must keep the rows that it keeps on the torch backend, but for ties.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import kvpolicy
from benchmarks.caches import KEEP, POLICIES, Make, dynamic, policed
from benchmarks.decoding import distance, kv_bytes
from benchmarks.models import LLAVA, SMALL, prompt, random_model
from benchmarks.suite import Hold, Suite
from benchmarks.timing import Peak

LENGTHS = {False: (1024, 4096, 16384, 32768), True: (40, 70)}
ARMS: Mapping[str, kvpolicy.Policy] = {**POLICIES, "ada_kv": kvpolicy.ada_kv(keep=KEEP)}
TRIED = {False: 1024, True: 40}
LOGITS = 1e-3  # relative: the prompt is attended to by the same kernel on the same tensors
OTHER_ROWS = 0.02  # share of the kept rows that may be others than the torch backend keeps: bfloat16 scores that tie


class Prefill:
    """The suite's arms."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.shape = SMALL if suite.small else LLAVA
        self.model = random_model(self.shape, suite.device)
        self._tried: dict[str, list[tuple[str, float, float]]] = {}

    def arms(self) -> None:
        """Every length, without a policy and with each."""
        for length in LENGTHS[self.suite.small]:
            case = {"case": "prefill", "model": self.shape.model, "batch": 1, "prompt": length}
            self.suite.arm(case, "DynamicCache", lambda hold, n=length: self.run(hold, n, dynamic))
            for name in ARMS:
                self.suite.arm(case, name, lambda hold, n=length, name=name: self.held(hold, n, name))

    def held(self, hold: Hold, length: int, name: str) -> dict[str, Any]:
        """A policy's arm, after its gates."""
        if name not in self._tried:
            self._tried[name] = self.tried(ARMS[name])
        for gate in self._tried[name]:
            hold(*gate)
        return self.run(hold, length, policed(ARMS[name]))

    def run(self, hold: Hold, length: int, make: Make) -> dict[str, Any]:
        """Time of whole passes, each with a fresh cache; the peak beyond the weights; what was left of the prompt."""
        prompts = list(prompt(self.shape, 3, length, self.suite.device).split(1))

        def once(ids: Tensor) -> Any:
            cache = make(self.model)
            self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            return cache

        with Peak(self.suite.device) as peak:
            cache = once(prompts[0])
        left: dict[str, Any] = {"peak_bytes": peak.bytes, "kv_bytes": kv_bytes(cache)}
        if hasattr(cache, "report"):
            left["backend"] = cache.report().backend
        del cache  # its rows are no part of the next one's peak
        return {"ms": self.suite.timed(once, prompts, seconds=1.0, fewest=3, most=20), **left}

    def tried(self, policy: kvpolicy.Policy) -> list[tuple[str, float, float]]:
        """What the gates go by, on a short prompt."""
        length = TRIED[self.suite.small]
        ids = prompt(self.shape, 1, length, self.suite.device)
        plain = self.model(input_ids=ids, past_key_values=dynamic(self.model), logits_to_keep=1).logits
        kept: list[list[Tensor]] = []
        for backend in (None, "torch"):
            cache = policed(policy, backend)(self.model)
            logits = self.model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
            kept.append([_kept(layer.store.view()) for layer in cache.session._layers])
            if backend is None:
                off, rows = distance(logits, plain), cache.report().layers
        budget = round(KEEP * length)
        other = sum(int((one & ~torch_).sum()) for one, torch_ in zip(*kept, strict=True))
        return [
            ("logits of the last token against the plain cache", off, LOGITS),
            ("rows held against the budget, on average", abs(sum(r.rows for r in rows) / len(rows) - budget), 0.0),
            ("rows kept that the torch backend drops, a share", other / sum(int(k.sum()) for k in kept[0]), OTHER_ROWS),
        ]


def _kept(view: kvpolicy.CacheView) -> Tensor:
    """bool [B, H, 1 + tokens]: which arrival indices are held. The first place is that of empty slots."""
    held = torch.zeros(*view.positions.shape[:2], 1 << 16, dtype=torch.bool, device=view.positions.device)
    return held.scatter_(-1, view.positions + 1, view.valid)


def main(arguments: Sequence[str] | None = None) -> int:
    """All lengths; the exit status."""
    with torch.no_grad():
        suite = Suite("prefill", __doc__, arguments)
        Prefill(suite).arms()
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
