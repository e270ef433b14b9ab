from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import kvpolicy
from kvpolicy import CacheView, Fold, MostSimilar, Plan, Step, ZeroPerturbation
from kvpolicy_hf.simulate.attention import output, shares

from ..prompts import Prompt, Samples, gathered, mean

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
{outside:.1%} of the merged rows, and negative for {negative:.1%}. How much the output of the current step changes
by the merge alone, mean over layers, against the table with the rows that are about to merge:

| | for the mean query of a group | for its {groups:.0f} query heads |
|---|---|---|
| ours | {mean_ours:.3f} | {heads_ours:.3f} |
| whatever the factor | {mean_any:.1g} | {heads_any:.3f} |
| no factor, as released | {mean_plain:.3f} | {heads_plain:.3f} |
| no factor, votes not counted | {mean_votes:.3f} | {heads_votes:.3f} |

The factor does what the paper says for the one query that it is made for. Where several query heads share a key, as
in this model, no factor is right for all of them, and one far from 1 is wrong for the others. Output error of the
next {steps:.0f} steps: ours {ours:.3f}, without a factor {plain:.3f}, rows dropped instead of merged {evict:.3f}.
"""

KEEP, THRESHOLD = 0.2, 0.8


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts]) | {"keep": KEEP}


def _measure(prompt: Prompt) -> dict[str, float]:
    policy = kvpolicy.keep_kv(keep=KEEP, threshold=THRESHOLD)
    assert policy.prefill is not None
    merge = Fold(MostSimilar(threshold=THRESHOLD), ZeroPerturbation(limit=1.0))
    ours = prompt.after(policy)
    plain = prompt.after(replace(policy, prefill=replace(policy.prefill, merge=merge)))
    numbers: dict[str, float] = {
        "groups": prompt.heads[1],
        "steps": prompt.record.steps,
        "ours": mean(prompt.error(ours)),
        "plain": mean(prompt.error(plain)),
        "evict": mean(prompt.error(prompt.evicted(ours.kept))),
    }
    factors, folded, changes = [], [], []
    for view, plan, step in ours.plans:
        factor = _factors(view, plan, step)
        factors.append(factor[factor.isfinite()])
        folded.append((plan.into >= 0).any(-1)[~plan.keep & view.valid])
        variants = {
            "ours": (plan, True),
            "any": (replace(plan, key_scale=factor.nan_to_num(1.0)), True),
            "plain": (replace(plan, key_scale=None), True),
            "votes": (replace(plan, key_scale=None), False),
        }
        changes.append({name: _changes(view, one, step, counted) for name, (one, counted) in variants.items()})
    factor = torch.cat(factors)
    numbers |= {
        "folds": mean(torch.cat(folded).double()),
        "outside": mean(((factor < 0.5) | (factor > 2)).double()),
        "negative": mean((factor < 0).double()),
    }
    for name in changes[0]:
        group, heads = zip(*(change[name] for change in changes), strict=True)
        numbers |= {f"mean_{name}": mean(group), f"heads_{name}": mean(heads)}
    return numbers


def _factors(view: CacheView, plan: Plan, step: Step) -> Tensor:
    """The factor that each merged key needs, ``ln(W / P) / (sum w_j l_j / W)``, [B, H, S]; NaN where nothing merges."""
    query = step.queries[:, :, -1].double().unflatten(1, (view.shape[1], -1)).mean(2)
    logits = step.scale * (view.keys.double() @ query[..., None])[..., 0]
    assert plan.into is not None
    kinds = (torch.ones_like(logits), logits.exp(), logits.exp() * logits)
    votes, paid, weighed = (data + step.ops.segment_sum(data[..., None], plan.into) for data in kinds)
    return torch.where(votes > 1, (paid / votes).log() / (weighed / paid), torch.nan)


def _changes(view: CacheView, plan: Plan, step: Step, counted: bool) -> tuple[float, float]:
    """Relative change of what the last query of the prompt reads: of the group's mean query, and of its heads."""
    stays = plan.keep | (plan.into >= 0).any(-1)  # the table before the merge, without what is dropped anyway
    after = step.ops.compact(view, plan, int(plan.keep.sum(-1).max()))
    heads = step.queries[:, :, -1:].double()
    changes = []
    for asked in (heads.unflatten(1, (view.shape[1], -1)).mean(2), heads):
        before = _read(asked, view, stays, step.scale, counted=False)
        now = _read(asked, after, after.valid, step.scale, counted=counted)
        changes.append(float(torch.linalg.vector_norm(now - before) / torch.linalg.vector_norm(before)))
    return changes[0], changes[1]


def _read(queries: Tensor, view: CacheView, there: Tensor, scale: float, *, counted: bool) -> Tensor:
    bias = view.columns["count"].data.double().clamp(min=1).log() * counted
    weights = shares(queries, view.keys, scale, bias=bias.masked_fill(~there, -torch.inf)[:, :, None, None])
    return output(weights, view.values)
