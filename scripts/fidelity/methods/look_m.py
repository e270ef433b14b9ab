from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

import kvpolicy
from kvpolicy import Plan, Step

from ..prompts import Prompt, Samples, gathered, mean

RELEASED = """
To let only image rows go, it subtracts 65,516 from their scores, in the model's precision. In float16 neighbouring
numbers of that size are 32 apart: scores below 16 leave no trace, and the choice among such rows is left to the
sort. Its weighted merge leaves out rows of less than average similarity.
"""
CHOSEN = """
Text and recent rows are protected and the scores are left alone. All three merges of the paper; in the weighted one
every row folds, as printed, although its weights do not sum to one. Text that alone exceeds the budget stays, and
the report says so.
"""
MEASURED = """
On the demo's pictures ({image:.0f} image tokens of {tokens:.0f}). The image rows of a head have {distinct_wide:.1f}
different scores on average; after the subtraction in float16 they have {distinct:.1f}.

| `keep={keep:g}` | sum of the weights of a merged row, smallest | mean | largest | output error |
|---|---|---|---|---|
| `merge="pivotal"` | {pivotal_least:.2f} | {pivotal_mean:.2f} | {pivotal_most:.2f} | {pivotal:.3f} |
| `merge="average"` | {average_least:.2f} | {average_mean:.2f} | {average_most:.2f} | {average:.3f} |
| `merge="weighted"` | {weighted_least:.2f} | {weighted_mean:.2f} | {weighted_most:.2f} | {weighted:.3f} |
| rows are dropped | | | | {evict:.3f} |
"""

KEEP = 0.5
MERGES: tuple[Literal["pivotal", "average", "weighted"], ...] = ("pivotal", "average", "weighted")


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.pictures]) | {"keep": KEEP}


def _measure(prompt: Prompt) -> dict[str, float]:
    scores = prompt.mass.mean(2)[..., prompt.image]
    numbers: dict[str, float] = {
        "image": int(prompt.image.sum()),
        "tokens": prompt.tokens,
        "distinct": _distinct(scores.half() - torch.tensor(65_516).half()),
        "distinct_wide": _distinct(scores.half()),
    }
    for merge in MERGES:
        table = prompt.after(kvpolicy.look_m(keep=KEEP, merge=merge))
        sums = torch.cat([sums_of_weights(plan, step) for _, plan, step in table.plans])
        numbers |= {
            merge: mean(prompt.error(table)),
            f"{merge}_least": float(sums.min()),
            f"{merge}_mean": mean(sums),
            f"{merge}_most": float(sums.max()),
        }
    return numbers | {"evict": mean(prompt.error(prompt.evicted(table.kept)))}


def sums_of_weights(plan: Plan, step: Step) -> Tensor:
    """For every row that others fold into, the sum of all weights in it, its own included."""
    assert plan.into is not None
    assert plan.weight is not None
    assert plan.self_weight is not None
    folds = (plan.into >= 0).to(plan.weight.dtype)
    sums = plan.self_weight + step.ops.segment_sum(plan.weight * folds, plan.into)
    takes = step.ops.segment_sum(folds, plan.into) > 0
    return sums[takes].double()


def _distinct(scores: Tensor) -> float:
    """How many different numbers there are in a head, mean over heads and layers."""
    return mean(len(line.unique()) for line in scores.flatten(0, 1))
