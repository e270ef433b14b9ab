from __future__ import annotations

from dataclasses import replace

import torch

import kvpolicy
from kvpolicy import Uniform, WindowMass

from ..prompts import Prompt, Samples, gathered, mean, overlap

RELEASED = """
No code of the authors is known to us.
"""
CHOSEN = """
What of the paper is left open: how much a text query matters is what the last query pays to its row, mean over all
heads; elite from a tenth of the most; skewness below 0 counts as 0; strength and skewness weigh the same. Text
always stays, and counts inside the budget.
"""
MEASURED = """
On the demo's pictures at `keep={keep:g}`, where {text:.0f} of {tokens:.0f} tokens are text. {elite:.1f} queries of
the {text:.0f} are elite, mean over layers. Layers keep from {least:.0f} to {most:.0f} rows, {average:.0f} on
average. All queries of the window instead of the elite would keep {same:.0%} of the same rows. Output error
{ours:.3f}; with all queries {all_queries:.3f}; with the same budget in every layer {uniform:.3f}.
"""

KEEP, WINDOW, THRESHOLD = 0.5, 64, 0.1


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.pictures])


def _measure(prompt: Prompt) -> dict[str, float]:
    policy = kvpolicy.air_cache(keep=KEEP, window=WINDOW, threshold=THRESHOLD)
    assert policy.prefill is not None
    uniform = replace(policy, prefill=replace(policy.prefill, allocate=Uniform()))
    window = WindowMass(window=WINDOW, keep_window=False)
    every = replace(policy, prefill=replace(policy.prefill, allocate=Uniform(), score=window))
    ours, uniform_table, every_table = (prompt.after(one) for one in (policy, uniform, every))
    text = ~prompt.image
    text[: max(prompt.tokens - WINDOW, 0)] = False  # a query outside the window is no candidate
    matters = prompt.window(1).mean((1, 2))[:, text]
    elite = (matters >= THRESHOLD * matters.amax(-1, keepdim=True)) | (torch.where(text)[0] == prompt.tokens - 1)
    return {
        "keep": KEEP,
        "tokens": prompt.tokens,
        "text": int((~prompt.image).sum()),
        "elite": mean(elite.sum(-1).double()),
        "least": float(ours.rows.min()),
        "most": float(ours.rows.max()),
        "average": mean(ours.rows.double()),
        "same": overlap(every_table.kept, uniform_table.kept),
        "ours": mean(prompt.error(ours)),
        "uniform": mean(prompt.error(uniform_table)),
        "all_queries": mean(prompt.error(every_table)),
    }
