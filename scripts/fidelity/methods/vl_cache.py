from __future__ import annotations

from dataclasses import replace

import kvpolicy
from kvpolicy import AttentionMass, Uniform

from ..prompts import Prompt, Samples, gathered, mean, overlap

RELEASED = """
No code of the authors is known to us.
"""
CHOSEN = """
What of the paper is left open: the share of strong entries is counted over all entries that the queries after the
image see, and no layer weighs less than 1%. Rows in integers, with the exact total.
"""
MEASURED = """
On the demo's pictures at `keep={keep:g}` ({tokens:.0f} tokens, {layers:.0f} layers). Layers keep from {least:.0f}
to {most:.0f} rows, {average:.0f} on average. Scores of all queries instead of those after the image would keep
{same:.0%} of the same rows. Output error {ours:.3f}; with all queries {all_queries:.3f}; with the same budget in
every layer {uniform:.3f}.
"""

KEEP = 0.5


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.pictures])


def _measure(prompt: Prompt) -> dict[str, float]:
    policy = kvpolicy.vl_cache(keep=KEEP)
    assert policy.prefill is not None
    uniform = replace(policy, prefill=replace(policy.prefill, allocate=Uniform()))
    every = replace(policy, prefill=replace(policy.prefill, allocate=Uniform(), score=AttentionMass()))
    ours, uniform_table, every_table = (prompt.after(one) for one in (policy, uniform, every))
    return {
        "keep": KEEP,
        "tokens": prompt.tokens,
        "layers": prompt.layers,
        "least": float(ours.rows.min()),
        "most": float(ours.rows.max()),
        "average": mean(ours.rows.double()),
        "same": overlap(every_table.kept, uniform_table.kept),
        "ours": mean(prompt.error(ours)),
        "uniform": mean(prompt.error(uniform_table)),
        "all_queries": mean(prompt.error(every_table)),
    }
