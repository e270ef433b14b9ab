from __future__ import annotations

import kvpolicy

from ..prompts import Samples, gathered
from .k_norm import KEEP, foresight

RELEASED = """
There is no paper. It is the control that every comparison needs.
"""
CHOSEN = """
A hash of seed, layer and position, so that a run can be repeated and a row's number never changes: what is left at
any time is a uniform sample of what was seen.
"""
MEASURED = """
At `keep={keep:g}`, mean over {seeds:.0f} seeds, against what the next {steps:.0f} queries attend to in truth. Of
the rows with the most attention it keeps {found:.0%} ({chance:.0%} by chance); all its rows together have
{mass:.0%} of the attention on the prompt. The first row stays in {sink:.0%} of the heads. Output error {error:.3f}.
"""

SEEDS = 4


def measure(samples: Samples) -> dict[str, float]:
    parts = [
        foresight(prompt, prompt.after(kvpolicy.random(keep=KEEP, seed=seed)))
        for prompt in samples.texts
        for seed in range(SEEDS)
    ]
    return gathered(parts) | {"seeds": SEEDS}
