from __future__ import annotations

import kvpolicy

from ..prompts import Samples, gathered
from .k_norm import KEEP, foresight

RELEASED = """
No code of the authors is known to us. NVIDIA's kvpress has the same score.
"""
CHOSEN = """
The anchor is the mean over the rows that are still in the table, at every step; keys as they are cached, after the
rotary embedding.
"""
MEASURED = """
At `keep={keep:g}`, against what the next {steps:.0f} queries attend to in truth. Of the rows with the most
attention it keeps {found:.0%} ({chance:.0%} by chance); all its rows together have {mass:.0%} of the attention on
the prompt. The first row stays in {sink:.0%} of the heads. Output error {error:.3f}.
"""


def measure(samples: Samples) -> dict[str, float]:
    parts = [foresight(prompt, prompt.after(kvpolicy.key_diff(keep=KEEP))) for prompt in samples.texts]
    return gathered(parts)
