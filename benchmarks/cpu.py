"""What a policy costs on a CPU, beside a prompt and beside a decode step: SmolLM2-135M and the demo's model.

    python -m benchmarks.cpu result.json

Each policy takes turns with the plain cache, request by request, so that a machine that is busy for a while is so for
both; and all run in one thread, which waits for no other that the machine has put aside. SmolLM2 comes with the package
that `examples/03_smollm2_perplexity.py` names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

import kvpolicy
from benchmarks.caches import KEEP
from benchmarks.decoding import distance, kv_bytes
from benchmarks.models import SMALL, prompt, random_model
from benchmarks.suite import Hold, Suite
from benchmarks.timing import Stamps, Times
from kvpolicy_hf import PolicyCache, enable
from kvpolicy_hf.demo.scenes import draw
from kvpolicy_hf.loading import load_model

PROMPT = 256  # tokens of SmolLM2's
ROUNDS = {False: 3, True: 1}
LOGITS = 1e-4  # relative: the prompt is attended to in whole, by another function that calls the same kernel


@dataclass(frozen=True)
class Work:
    """A model and a request to it: what goes into its first pass, and steps after it."""

    model: Any
    inputs: Mapping[str, Tensor]
    steps: int

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return int(self.inputs["input_ids"].shape[1])


def smollm2() -> Work:
    """A text of the standard library's help."""
    from pydoc_data.topics import topics

    model, tokenizer = load_model("smollm2")
    text = max(topics.values(), key=len)
    return Work(model, {"input_ids": tokenizer(text, return_tensors="pt").input_ids[:, :PROMPT]}, 8)


def demo() -> Work:
    """A picture and a question."""
    model, processor = load_model("demo")
    rng = np.random.default_rng(0)
    scene = draw(rng, "grid")
    text = scene.prompt(scene.ask("row", rng))
    return Work(model, processor(images=scene.image, text=text, return_tensors="pt"), 12)


def tiny() -> Work:
    """To try the suite."""
    here = torch.device("cpu")
    return Work(random_model(SMALL, here), {"input_ids": prompt(SMALL, 1, 40, here)}, 2)


def request(work: Work, cache: Any) -> tuple[Tensor, list[float]]:
    """The prompt's last logits, and milliseconds of the prompt and of each step."""
    stamps = Stamps(torch.device("cpu"))
    stamps.stamp()
    logits = first = work.model(**work.inputs, past_key_values=cache, logits_to_keep=1).logits
    stamps.stamp()
    for _ in range(work.steps):
        logits = work.model(input_ids=logits[:, -1].argmax(-1, keepdim=True), past_key_values=cache).logits
        stamps.stamp()
    return first, stamps.gaps()


def measured(hold: Hold, work: Work, policy: kvpolicy.Policy, rounds: int) -> dict[str, Any]:
    """Times with and without the policy, taken in turns after one request of each."""
    enable(work.model)
    spent: dict[str, list[float]] = {name: [] for name in ("plain_ms", "ms", "plain_step_ms", "step_ms")}
    for turn in range(1 + rounds):
        plain, without = request(work, DynamicCache(config=work.model.config))
        held = PolicyCache(work.model, policy, inputs=work.inputs)
        first, with_policy = request(work, held)
        if turn == 0:
            hold("logits of the prompt's last token against the plain cache", distance(first, plain), LOGITS)
            continue
        for name, times in (("plain_", without), ("", with_policy)):
            spent[f"{name}ms"].append(times[0])
            spent[f"{name}step_ms"] += times[1:]
    return {**{name: Times.of(times) for name, times in spent.items()}, "kv_bytes": kv_bytes(held)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Every recipe on every model; the exit status."""
    torch.set_num_threads(1)
    with torch.no_grad():
        suite = Suite("cpu", __doc__, ["--device", "cpu", *(sys.argv[1:] if arguments is None else arguments)])
        models = {"small": cache(tiny)} if suite.small else {"SmolLM2-135M": cache(smollm2), "demo": cache(demo)}
        for model, work in models.items():
            case = {"case": "cpu", "model": model, "keep": KEEP}
            for name, policy in kvpolicy.catalogue(keep=KEEP).items():

                def run(hold: Hold, work: Any = work, policy: kvpolicy.Policy = policy) -> dict[str, Any]:
                    return {"prompt": work().tokens, **measured(hold, work(), policy, ROUNDS[suite.small])}

                suite.arm(case, name, run)
        return suite.finish()


if __name__ == "__main__":
    sys.exit(main())
