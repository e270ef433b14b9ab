from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import kvpolicy

from ..prompts import Prompt, Samples, Table, each_head, gathered, mean

RELEASED = """
It merges around sinks and a window of recent rows. The row that falls out of the window is added to the 32 after
it, by a draw: the probability is the attention that the current query pays to it, divided by the mean of what it
pays to the rest of the window. Rows are not ranked.
"""
CHOSEN = """
Eviction as in H2O, with sinks, and the largest score of a kept row as the measure of a row that goes. The draws are
a hash of seed, layer and position. As published, values are added, 1/m to each of m rows: a kept value grows with
what it takes.
"""
MEASURED = """
At `keep={keep:g}`, after the prompt, with the same rows kept.

| | evicted rows that merge | length of a kept value, mean | largest | output error |
|---|---|---|---|---|
| rows are dropped | | | | {evict:.3f} |
| ours: beside the largest | {drawn:.1%} | {growth:.2f} | {growth_most:.2f} | {ours:.3f} |
| beside the mean, as released | {released_drawn:.1%} | {released_growth:.2f} | {released_growth_most:.2f} | \
{released:.3f} |
"""

KEEP, SINKS, COUNT, SEED = 0.2, 4, 32, 0


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts]) | {"keep": KEEP}


def _measure(prompt: Prompt) -> dict[str, float]:
    policy = kvpolicy.cam(keep=KEEP, sinks=SINKS, count=COUNT, seed=SEED)
    assert policy.prefill is not None
    ours = prompt.after(policy)
    evict = prompt.after(replace(policy, prefill=replace(policy.prefill, merge=kvpolicy.Drop())))
    assert torch.equal(ours.kept, evict.kept)
    merges = torch.stack([(plan.into >= 0).any(-1)[0] for _, plan, _ in ours.plans])
    released, drawn = _beside_the_mean(prompt, evict.kept)
    return {
        "evict": mean(prompt.error(evict)),
        "drawn": float(merges.sum() / (~ours.kept).sum()),
        "ours": mean(prompt.error(ours)),
        "released_drawn": drawn,
        "released": mean(prompt.error(released)),
        **dict(zip(("growth", "growth_most"), _growth(ours, evict), strict=True)),
        **dict(zip(("released_growth", "released_growth_most"), _growth(released, evict), strict=True)),
    }


def _growth(table: Table, before: Table) -> tuple[float, float]:
    """How long values are beside what they were: mean and largest."""
    now, then = (torch.linalg.vector_norm(one.values, dim=-1)[one.kept] for one in (table, before))
    return mean(now / then), float((now / then).max())


def _beside_the_mean(prompt: Prompt, kept: Tensor) -> tuple[Table, float]:
    """Each evicted row is drawn by its score beside the mean of the kept ones; the table, and the share drawn."""
    scores = prompt.mass.mean(2)
    likely = scores / ((scores * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True))
    draws = torch.rand(scores.shape, generator=torch.Generator().manual_seed(SEED), dtype=scores.dtype)
    drawn = ~kept & (draws < likely)
    values = prompt.values.clone()
    for whole, added, stays, goes in each_head(prompt.values, values, kept, drawn):
        sources, targets = torch.where(goes)[0], torch.where(stays)[0]
        place = torch.searchsorted(targets, sources)[:, None] + torch.arange(COUNT)
        inside = place < len(targets)
        shares = (whole[sources] / COUNT)[:, None].expand(-1, COUNT, -1)[inside]
        added.index_add_(0, targets[place[inside]], shares)
    return Table(prompt.keys, values, kept), float(drawn.sum() / (~kept).sum())
