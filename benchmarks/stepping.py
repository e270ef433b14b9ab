"""One arm of decode steps under any cache: its model, the logits it is held to, and its floor."""

from __future__ import annotations

import gc
from functools import cache
from typing import Any

from torch import Tensor

import kvpolicy
from benchmarks.caches import KEEP, Make, dynamic, policed
from benchmarks.decoding import LAUNCHES, Request, served, teacher_forced
from benchmarks.models import Shape, random_model, weight_bytes
from benchmarks.suite import Hold, Suite

__all__ = ["Stepping"]

TORCH_UP_TO = 4096  # tokens of a prompt whose reference is scored by the torch backend: beyond, that takes minutes


class Stepping:
    """Arms of a suite, one model at a time on the device."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._shape: Shape | None = None
        self._model: Any = None
        self._forced = cache(self._forced_logits)

    def model(self, shape: Shape) -> Any:
        """The model of this shape."""
        if self._shape != shape:
            self._model = self._shape = None
            self._forced.cache_clear()
            gc.collect()
            self._model, self._shape = random_model(shape, self.suite.device), shape
        return self._model

    def arm(
        self,
        case: dict[str, Any],
        arm: str,
        request: Request,
        make: Make,
        launch: str,
        *,
        shape: Shape,
        rows: int,
        policy: kvpolicy.Policy | None = None,
    ) -> None:
        """One arm; ``rows`` are those that a step has to read, by which its floor goes."""

        def run(hold: Hold) -> dict[str, Any]:
            if launch == "CUDA graph" and self.suite.device.type != "cuda":
                return {"left_out": "a CPU records no graphs"}
            model = self.model(shape)
            due = self._forced(shape, request.prompt, policy)
            # A cache that is wrong: the full one; in place of that, one that has lost most of the prompt.
            wrong = self._forced(shape, request.prompt, None if policy else kvpolicy.streaming_llm(keep=KEEP))
            found = served(model, shape, lambda: make(model), request, LAUNCHES[launch], hold, due, wrong)
            read = weight_bytes(model) + request.batch * rows * shape.row_bytes(model.dtype.itemsize)
            floor = read / self.suite.ceilings["copy_gb_s"] / 1e6
            return {"launch": launch, "rows": rows, "floor_ms": floor, **found}

        self.suite.arm(case, arm, run)

    def _forced_logits(self, shape: Shape, prompt: int, policy: kvpolicy.Policy | None) -> Tensor:
        """Of one request run eagerly, under a policy or with the full cache."""
        model = self.model(shape)
        backend = "torch" if prompt <= TORCH_UP_TO else None
        make = dynamic if policy is None else policed(policy, backend)
        return teacher_forced(model, make(model), shape, prompt, self.suite.device)
