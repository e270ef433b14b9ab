from __future__ import annotations

import kvpolicy

from ..prompts import Prompt, Samples, Table, best, gathered, mean, overlap

RELEASED = """
The number of rows is rounded up, rows are dropped only once there are more than a given number, and layers can be
left out; the choice of rows is the formula.
"""
CHOSEN = """
The formula in every layer, at every step. The norm is the same before and after the rotary embedding.
"""
MEASURED = """
At `keep={keep:g}`, against what the next {steps:.0f} queries attend to in truth. Of the rows with the most
attention it keeps {found:.0%} ({chance:.0%} by chance); all its rows together have {mass:.0%} of the attention on
the prompt. The first row stays in {sink:.0%} of the heads. Output error {error:.3f}; {early:.3f} in the first two
layers, which the released code may leave out.
"""

KEEP = 0.2


def measure(samples: Samples) -> dict[str, float]:
    parts = []
    for prompt in samples.texts:
        table = prompt.after(kvpolicy.k_norm(keep=KEEP))
        parts.append(foresight(prompt, table) | {"early": mean(prompt.error(table)[:2])})
    return gathered(parts)


def foresight(prompt: Prompt, table: Table) -> dict[str, float]:
    """What a choice of rows keeps of the attention that is still to come."""
    future = prompt.future[..., : prompt.tokens].mean((2, 3))  # [L, H, T]
    count = round(KEEP * prompt.tokens)
    return {
        "keep": KEEP,
        "steps": prompt.record.steps,
        "chance": count / prompt.tokens,
        "found": overlap(table.kept, best(future, count)),
        "mass": mean((future * table.kept).sum(-1) / future.sum(-1)),
        "sink": mean(table.kept[..., 0].double()),
        "error": mean(prompt.error(table)),
    }
