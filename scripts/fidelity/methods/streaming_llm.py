from __future__ import annotations

import torch

import kvpolicy

from ..prompts import Prompt, Samples, Table, gathered, mean, relative

RELEASED = """
No difference known to us. As in the paper, it caches keys before the rotary embedding and turns each to its slot in
the cache.
"""
CHOSEN = """
Rows keep the positions where they arrived, as under every other recipe; `positions="slots"` re-indexes as the paper
does. Between recent rows and the query nothing differs, for their distance is the same. What differs is how far
away the sinks seem to be.
"""
MEASURED = """
At `keep={keep:g}` the sinks stand {gap:.0f} positions nearer to the query in slots.

| | attention on the sinks | output error |
|---|---|---|
| full cache | {sinks_full:.1%} | |
| original positions | {sinks_original:.1%} | {error_original:.3f} |
| slots | {sinks_slots:.1%} | {error_slots:.3f} |

The outputs of the two differ by {change:.3f} on average and by {change_most:.2f} at most, relative to the output
with the full cache, in one layer at one step.
"""

KEEP, SINKS = 0.2, 4


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts])


def _measure(prompt: Prompt) -> dict[str, float]:
    table = prompt.after(kvpolicy.streaming_llm(keep=KEEP, sinks=SINKS))
    gap = prompt.tokens - int(table.rows[0, 0])
    nearer = table.keys.clone()
    nearer[:, :, :SINKS] = prompt.turn(nearer[:, :, :SINKS], gap)
    slots = Table(nearer, table.values, table.kept)
    change = relative(prompt.outputs(slots) - prompt.outputs(table) + prompt.due, prompt.due)
    return {
        "keep": KEEP,
        "gap": gap,
        "sinks_full": mean(prompt.future[..., :SINKS].sum(-1)),
        "sinks_original": _on_sinks(prompt, table),
        "sinks_slots": _on_sinks(prompt, slots),
        "error_original": mean(prompt.error(table)),
        "error_slots": mean(prompt.error(slots)),
        "change": mean(change),
        "change_most": float(change.max()),
    }


def _on_sinks(prompt: Prompt, table: Table) -> float:
    """The share of attention that the sinks receive: what attention reads if only their values are ones."""
    ones = torch.zeros_like(table.values)
    ones[:, :, :SINKS] = 1.0
    silent = Prompt(prompt.record)
    silent.all_values[:, :, prompt.tokens :] = 0.0
    return mean(silent.outputs(Table(table.keys, ones, table.kept)))
