from __future__ import annotations

from dataclasses import replace

import kvpolicy

from ..prompts import Prompt, Samples, gathered, mean

RELEASED = """
No official code. As printed, a merged value is the number of merged rows times their weighted mean, and the width
`sigma` of the Gaussian is defined by the weights that it gives.
"""
CHOSEN = """
The weighted mean, and attention that counts a merged row for as many tokens as it stands for (`+ log count` on its
logit): several rows with one key and one value are then exactly one row. `values="scaled"` is as printed. `sigma`
is the mean distance to the pivot in the run, or a given number. To meet a budget, each head searches its own ε; a
given `epsilon` takes the size that the keys give, as in the paper.
"""
MEASURED = """
| output error at `keep=` | {keep_0:g} | {keep_1:g} |
|---|---|---|
| mean, with counts (default) | {counted_0:.3f} | {counted_1:.3f} |
| mean, without counts | {mean_0:.3f} | {mean_1:.3f} |
| as printed | {scaled_0:.3f} | {scaled_1:.3f} |

As printed, values grow with their run ({run:.1f} rows on average at `keep={keep_1:g}`, {run_most:.0f} at most), but
only the share of attention that one row attracts reaches them. With the paper's `epsilon=0.75` and {keep_1:.0%} as
the budget that sets the protected rows, {size:.0%} of the rows are left.
"""

KEEP = (0.5, 0.2)


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts])


def _measure(prompt: Prompt) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for place, keep in enumerate(KEEP):
        counted = prompt.after(kvpolicy.kv_merger(keep=keep))
        scaled = prompt.after(kvpolicy.kv_merger(keep=keep, values="scaled"))
        numbers |= {
            f"keep_{place}": keep,
            f"counted_{place}": mean(prompt.error(counted)),
            f"mean_{place}": mean(prompt.error(replace(counted, count=None))),
            f"scaled_{place}": mean(prompt.error(scaled)),
        }
    assert counted.count is not None
    runs = counted.count[counted.kept & (counted.count > 1)]
    size = prompt.after(kvpolicy.kv_merger(keep=KEEP[-1], epsilon=0.75)).rows
    return numbers | {"run": mean(runs), "run_most": float(runs.max()), "size": mean(size / prompt.tokens)}
