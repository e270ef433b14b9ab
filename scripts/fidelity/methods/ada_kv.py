from __future__ import annotations

import torch

import kvpolicy

from ..prompts import Prompt, Samples, best, gathered, mean
from .snapkv import KEEP, WINDOW, plain, pool

RELEASED = """
It rounds the number of rows of each head by itself, so that the total of a layer is only nearly met. Heads are
stored one after another, as here. The version that we read ranks and stores rows for each query head.
"""
CHOSEN = """
Integers with the exact total `H * k`; the window counts among the rows of a head. Ragged heads are stored one after
another, so that memory follows the rows (decision [0012](decisions/0012-ragged-storage.md)).
"""
MEASURED = """
At `keep={keep:g}` the heads of a layer hold between {low:.0%} and {high:.0%} of the average, mean over layers. Rows
for keys and values after the prompt: {ragged:,.0f} ragged, {padded:,.0f} where every head is padded to the longest
of its layer ({ratio:.2f} times). Rounding each head by itself misses the total in {missed:.0%} of the layers, by
{off_most:.0f} at most. Output error {ours:.3f}; SnapKV with the same rows {uniform:.3f}.
"""

FLOOR = 0.2


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts])


def _measure(prompt: Prompt) -> dict[str, float]:
    table, uniform = prompt.after(kvpolicy.ada_kv(keep=KEEP, floor=FLOOR)), plain(prompt)
    rows, budget = table.rows.double(), round(KEEP * prompt.tokens)
    padded = rows.amax(1) * rows.shape[1]
    rest = budget - WINDOW
    scores = pool(prompt.window(WINDOW)[..., :-WINDOW].mean(2), padded=False)
    counts = best(scores.flatten(1), rest * rows.shape[1]).reshape(scores.shape).sum(-1)
    rounded = torch.round((1 - FLOOR) * counts + int(FLOOR * rest)).sum(1)
    return {
        "keep": KEEP,
        "low": mean(rows.amin(1)) / budget,
        "high": mean(rows.amax(1)) / budget,
        "ragged": float(rows.sum()),
        "padded": float(padded.sum()),
        "ratio": float(padded.sum() / rows.sum()),
        "missed": mean((rounded != rest * rows.shape[1]).double()),
        "off_most": float((rounded - rest * rows.shape[1]).abs().max()),
        "ours": mean(prompt.error(table)),
        "uniform": mean(prompt.error(uniform)),
    }
