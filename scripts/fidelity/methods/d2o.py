from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kvpolicy
from kvpolicy import AttentionMass, EMAGate, Fold, KeepRatio, MostSimilar, Pipeline, Policy, SimilaritySoftmax, TopK

from ..prompts import Prompt, Samples, Table, each_head, gathered, mean
from .look_m import sums_of_weights

RELEASED = """
The threshold moves by 0.5 to the new mean (0.7 in the paper), is one number for all heads, and is not forgotten
with the request. A row passes by the mean, over heads, of the similarity of the first, second, … dropped row of
each head, which are different tokens. What passes is weighted by its similarity and averaged with the anchor, so
that the weights do not sum to one. The first two layers and the last are left alone.
"""
CHOSEN = """
A threshold for each head, in a register of the request; weights by the softmax that the paper gives, convex;
`beta=0.7`; no layer is exempt unless `exempt` says so, and an exempt layer counts inside the total. While decoding,
layers keep the shares of the prompt.
"""
MEASURED = """
At `keep={keep:g}`. Layers keep from {least:.0f} to {most:.0f} rows of {tokens:.0f}; with the first two and the last
exempt, the others keep {exempt:.0f} on average. The shared threshold decides {gate:.0%} of the dropped rows
otherwise than that of their own head. After {steps:.0f} decode steps the two values of β have decided {beta:.1%} of
the rows otherwise. A threshold that is carried over from another text moves by {carried:.4f} on average.

With the same rows kept in every layer:

| | weights of a merged row, smallest sum | mean | largest | output error |
|---|---|---|---|---|
| ours | {own_least:.2f} | {own_mean:.2f} | {own_most:.2f} | {ours:.3f} |
| released | {weights_least:.2f} | {weights_mean:.2f} | {weights_most:.2f} | {released:.3f} |
| rows are dropped | | | | {evict:.3f} |
"""

KEEP, FIRST, RECENT = 0.2, 4, 0.5


def measure(samples: Samples) -> dict[str, float]:
    parts = [_measure(prompt) for prompt in samples.texts]
    numbers = gathered(parts)
    gates = [torch.cat([plan.registers["gate"] for _, plan, _ in _alone(prompt).plans]) for prompt in samples.texts[:2]]
    return numbers | {"keep": KEEP, "carried": mean((gates[0] - gates[1]).abs() / 2)}


def _alone(prompt: Prompt) -> Table:
    """D2O's rows and merging with the same budget in every layer."""
    return prompt.after(
        Policy(
            prefill=Pipeline(
                schedule=KeepRatio(KEEP),
                score=AttentionMass(),
                select=TopK(first=FIRST, recent=RECENT),
                merge=Fold(EMAGate(MostSimilar()), SimilaritySoftmax()),
            )
        )
    )


def _measure(prompt: Prompt) -> dict[str, float]:
    ends = (0, 1, prompt.layers - 1)
    rows = prompt.after(kvpolicy.d2o(keep=KEEP)).rows
    others = [layer for layer in range(prompt.layers) if layer not in ends]
    exempt = prompt.after(kvpolicy.d2o(keep=KEEP, exempt=ends)).rows[others]
    ours = _alone(prompt)
    similarity, into = _most_similar(prompt, ours.kept)
    own = torch.stack([(plan.into >= 0).any(-1)[0] for _, plan, _ in ours.plans])
    shared = _shared_gate(similarity, ours.kept)
    weights = torch.cat([sums_of_weights(plan, step) for _, plan, step in ours.plans])
    released, sums = _released(prompt, ours.kept, shared, similarity, into)
    return {
        "tokens": prompt.tokens,
        "steps": prompt.record.steps,
        "least": float(rows.min()),
        "most": float(rows.max()),
        "exempt": mean(exempt.double()),
        "gate": mean((own != shared)[~ours.kept].double()),
        "beta": _two_betas(prompt, ours.kept),
        "own_least": float(weights.min()),
        "own_mean": mean(weights),
        "own_most": float(weights.max()),
        "weights_least": float(sums.min()),
        "weights_mean": mean(sums),
        "weights_most": float(sums.max()),
        "ours": mean(prompt.error(ours)),
        "released": mean(prompt.error(released)),
        "evict": mean(prompt.error(prompt.evicted(ours.kept))),
    }


def _most_similar(prompt: Prompt, kept: Tensor) -> tuple[Tensor, Tensor]:
    """For every row the kept row of the most similar key: the similarity and the row, [L, H, T]."""
    unit = F.normalize(prompt.keys, dim=-1)
    return (unit @ unit.mT).masked_fill(~kept[:, :, None], -torch.inf).max(-1)


def _shared_gate(similarity: Tensor, kept: Tensor) -> Tensor:
    """bool [L, H, T]: dropped rows that pass one threshold for all heads, by the mean over the heads' n-th rows."""
    passes = torch.zeros_like(kept)
    for layer, (line, stays) in enumerate(zip(similarity, kept, strict=True)):
        found = torch.stack([one[~mask] for one, mask in zip(line, stays, strict=True)])  # [H, rows dropped]
        folds = found.mean(0) >= found.mean()
        for head, mask in enumerate(stays):
            passes[layer, head, ~mask] = folds
    return passes


def _released(prompt: Prompt, kept: Tensor, folds: Tensor, similarity: Tensor, into: Tensor) -> tuple[Table, Tensor]:
    """``(K + sum s_i K_i) / (1 + m)``: the table, and the sums of the weights of the merged rows."""
    keys, values, sums = prompt.keys.clone(), prompt.values.clone(), []
    flat = [data.flatten(0, 1) for data in (keys, values, prompt.keys, prompt.values, similarity, into)]
    for n, (goes,) in enumerate(each_head(folds)):
        new_keys, new_values, old_keys, old_values, alike, target = (data[n] for data in flat)
        to, weight = target[goes], alike[goes]
        count = 1.0 + torch.bincount(to, minlength=prompt.tokens)
        for new, old in ((new_keys, old_keys), (new_values, old_values)):
            new.index_add_(0, to, weight[:, None] * old[goes]).div_(count[:, None])
        total = torch.ones(prompt.tokens, dtype=weight.dtype).index_add_(0, to, weight) / count
        sums.append(total[count > 1])
    return Table(keys, values, kept), torch.cat(sums)


def _two_betas(prompt: Prompt, kept: Tensor) -> float:
    """How many of the rows that leave while decoding are decided otherwise with β = 0.5 than with 0.7."""
    tokens, unit = prompt.tokens, F.normalize(prompt.all_keys, dim=-1)
    here = torch.zeros(unit.shape[:3], dtype=torch.bool)
    here[:, :, :tokens] = kept
    scores = torch.zeros(here.shape, dtype=unit.dtype)
    scores[:, :, :tokens] = prompt.mass.mean(2)
    similarity, _ = _most_similar(prompt, kept)
    dropped = (~kept).sum(-1)
    gates = {beta: similarity.masked_fill(kept, 0.0).sum(-1) / dropped for beta in (0.7, 0.5)}
    differ = []
    for step in range(prompt.record.steps):
        here[:, :, tokens + step] = True
        hidden = ~here[:, :, None]
        scores += torch.softmax(prompt.logits[:, :, :, step].masked_fill(hidden, -torch.inf), -1).mean(2)
        quota = round(KEEP * (tokens + step + 1))
        if int(here[0, 0].sum()) <= quota:
            continue
        rank = here.cumsum(-1) - 1
        safe = ~here | (rank < FIRST) | (rank >= quota + 1 - int(RECENT * quota))
        gone = scores.masked_fill(safe, torch.inf).argmin(-1, keepdim=True)
        here.scatter_(-1, gone, False)
        key = unit.gather(2, gone[..., None].expand(-1, -1, -1, unit.shape[-1]))
        alike = (key @ unit.mT)[:, :, 0].masked_fill(~here, -torch.inf).amax(-1)
        gates = {beta: beta * alike + (1 - beta) * gate for beta, gate in gates.items()}
        differ.append((alike >= gates[0.7]) != (alike >= gates[0.5]))
    return mean(torch.stack(differ).double())
