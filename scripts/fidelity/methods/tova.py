from __future__ import annotations

import torch

import kvpolicy

from ..prompts import Prompt, Samples, best, gathered, mean, overlap

RELEASED = """
No difference known to us: it keeps the rows that the last query attends to most, by the mean over the heads, one
set for a layer.
"""
CHOSEN = """
As in the paper, nothing is protected: neither the first row nor the newest.
"""
MEASURED = """
At `keep={keep:g}`. A set for the layer holds {agree:.0%} of the rows that a key/value head would choose for itself.
The first row stays in {sink:.0%} of the layers. In {steps:.0f} decode steps, {newest:.1%} of the evictions take the
newest row itself, and half of the rows that go are among the {age:.0f} newest.
"""

KEEP = 0.2


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts])


def _measure(prompt: Prompt) -> dict[str, float]:
    tokens, steps = prompt.tokens, prompt.record.steps
    table = prompt.after(kvpolicy.tova(keep=KEEP))
    own = best(prompt.window(1).mean(2), round(KEEP * tokens))
    here = torch.zeros(prompt.layers, prompt.record.length, dtype=torch.bool)
    here[:, :tokens] = table.kept[:, 0]
    ages = []
    for step in range(steps):
        here[:, tokens + step] = True
        paid = torch.softmax(prompt.logits[:, :, :, step].masked_fill(~here[:, None, None], -torch.inf), -1)
        if int(here[0].sum()) > round(KEEP * (tokens + step + 1)):
            gone = paid.mean((1, 2)).masked_fill(~here, torch.inf).argmin(-1)
            here.scatter_(1, gone[:, None], False)
            ages.append(tokens + step - gone)
    age = torch.stack(ages).double()
    return {
        "keep": KEEP,
        "steps": steps,
        "agree": overlap(table.kept, own),
        "sink": mean(table.kept[:, 0, 0].double()),
        "newest": mean((age == 0).double()),
        "age": float(age.median()) + 1,
    }
