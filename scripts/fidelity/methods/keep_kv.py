from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import kvpolicy
from kvpolicy import CacheView, Fold, MostSimilar, Plan, Policy, Step, ZeroPerturbation
from kvpolicy_hf.simulate.attention import output, shares

from ..prompts import Prompt, Samples, mean

RELEASED = """
Weights come from the attention of several recent queries instead of the last one, with which later steps are
predicted, and a merged key is the weighted mean as it is: the factor that makes the current step exact is missing.
"""
CHOSEN = """
The last query alone, mean over the query heads of a group, and the factor on the key. A factor outside [1/2, 2]
would change the key beyond recognition and is left out; the output of the step then changes. Later steps are not
predicted. Attention counts votes (`count_bias=True`).
"""
MEASURED = """
At `keep={keep:g}`: {folds:.0%} of the rows that go are similar enough to merge. The factor is outside [1/2, 2] for
{outside:.1%} of the merged rows, negative for {negative:.1%}. Change of the output of the current step, relative,
by the merge alone (against the table with the rows that are about to merge), mean over layers:

| | the mean query of a group | the query heads |
|---|---|---|
| ours | {mean_ours:.1e} | {heads_ours:.4f} |
| any positive factor | {mean_unlimited:.1e} | {heads_unlimited:.4f} |
| no factor, as released | {mean_plain:.1e} | {heads_plain:.4f} |
| no factor, votes not counted | {mean_votes:.1e} | {heads_votes:.4f} |

Output error of the next {steps:.0f} steps: ours {ours:.3f}, without a factor {plain:.3f}, rows dropped instead of
merged {evict:.3f}.
"""

KEEP, THRESHOLD, ANYTHING = 0.2, 0.8, 1e9


def measure(samples: Samples) -> dict[str, float]:
    parts = [_measure(prompt) for prompt in samples.texts]
    return {name: mean(part[name] for part in parts) for name in parts[0]} | {"keep": KEEP}


def _limited(limit: float) -> Policy:
    policy = kvpolicy.keep_kv(keep=KEEP, threshold=THRESHOLD)
    assert policy.prefill is not None
    merge = Fold(MostSimilar(threshold=THRESHOLD), ZeroPerturbation(limit=limit))
    return replace(policy, prefill=replace(policy.prefill, merge=merge))


def _measure(prompt: Prompt) -> dict[str, float]:
    tables = {"ours": 2.0, "unlimited": ANYTHING, "plain": 1.0}
    tables = {name: prompt.after(_limited(limit)) for name, limit in tables.items()}
    changes = {name: _changes(prompt, table.plans, counted=True) for name, table in tables.items()}
    changes["votes"] = _changes(prompt, tables["plain"].plans, counted=False)
    factor = torch.cat([_factors(*planned, prompt.scale) for planned in tables["ours"].plans])
    folded = torch.cat([(plan.into >= 0).any(-1)[~plan.keep & view.valid] for view, plan, _ in tables["ours"].plans])
    kept = tables["ours"].kept
    return {
        "steps": prompt.record.steps,
        "folds": mean(folded.double()),
        "outside": mean(((factor < 0.5) | (factor > 2)).double()),
        "negative": mean((factor < 0).double()),
        "ours": mean(prompt.error(tables["ours"])),
        "plain": mean(prompt.error(tables["plain"])),
        "evict": mean(prompt.error(prompt.evicted(kept))),
        **{f"mean_{name}": change[0] for name, change in changes.items()},
        **{f"heads_{name}": change[1] for name, change in changes.items()},
    }


def _factors(view: CacheView, plan: Plan, step: Step, scale: float) -> Tensor:
    """The factor that each merged key would need, ``ln(W / P) / (sum w_j l_j / W)``, whatever it is."""
    query = step.queries[:, :, -1].double().unflatten(1, (view.shape[1], -1)).mean(2)
    logits = scale * (view.keys.double() @ query[..., None])[..., 0]
    assert plan.into is not None
    kinds = (torch.ones_like(logits), logits.exp(), logits.exp() * logits)
    votes, paid, weighed = (data + step.ops.segment_sum(data[..., None], plan.into) for data in kinds)
    merged = votes > 1
    return ((paid / votes).log() / (weighed / paid))[merged]


def _changes(prompt: Prompt, plans: tuple, *, counted: bool) -> tuple[float, float]:
    """Relative change of what the last query of the prompt reads: of the group's mean query, and of its heads."""
    both: tuple[list[float], list[float]] = ([], [])
    for view, plan, step in plans:
        stays = plan.keep | (plan.into >= 0).any(-1)  # the table before the merge, without what is dropped anyway
        after = step.ops.compact(view, plan, int(plan.keep.sum(-1).max()))
        heads = step.queries[:, :, -1:].double()
        group = heads.unflatten(1, (view.shape[1], -1)).mean(2)
        for asked, changes in zip((group, heads), both, strict=True):
            before = _read(asked, view.keys, view.values, stays, None, prompt.scale)
            count = after.columns["count"].data if counted else None
            now = _read(asked, after.keys, after.values, after.valid, count, prompt.scale)
            changes.append(float(torch.linalg.vector_norm(now - before) / torch.linalg.vector_norm(before)))
    return mean(both[0]), mean(both[1])


def _read(queries: Tensor, keys: Tensor, values: Tensor, there: Tensor, count: Tensor | None, scale: float) -> Tensor:
    bias = torch.zeros(there.shape, dtype=torch.float64)
    if count is not None:
        bias = count.double().clamp(min=1).log()
    return output(shares(queries, keys, scale, bias=bias.masked_fill(~there, -torch.inf)[:, :, None, None]), values)
