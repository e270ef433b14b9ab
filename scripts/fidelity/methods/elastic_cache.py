from __future__ import annotations

import torch
from torch import Tensor

import kvpolicy

from ..prompts import Prompt, Samples, Table, best, mean, overlap

RELEASED = """
The rows to keep are those with `argsort(scores) > n`, which takes the order of the rows for their rank. The rows
that are merged are counted from the first row on instead of from the first one that may leave, so each is the
neighbour of the row that was meant. One row too few stays. While decoding, positions go on from the length of the
compressed cache, and the index of the fixed point is negative after a short prompt: at `-1` the cache is stored
twice.
"""
CHOSEN = """
True ranks, exactly `round(keep * T)` rows, the rows that leave are the rows that merge, positions of the tokens
themselves, and a fixed point that is never before the protected rows. Nothing folds into the protected first and
last row; in the released code too, though the paper does not say so. The paper's ablations are arguments: `merge`,
`statistic`, `sets`, `discard`. `keep` is the share that stays; `--ratio` of the released code is the share that
goes.
"""
MEASURED = """
Pruned is the share that goes, `1 - keep`.

| pruned | kept rows that are true top rows | by chance | first row folds into another, share of layers | output \
error, ours | released | ours, rows dropped | released rows, dropped |
|---|---|---|---|---|---|---|---|
| {pruned_0:.0%} | {overlap_0:.0%} | {chance_0:.0%} | {sink_0:.0%} | {ours_0:.3f} | {released_0:.3f} | {evict_0:.3f} \
| {released_evict_0:.3f} |
| {pruned_1:.0%} | {overlap_1:.0%} | {chance_1:.0%} | {sink_1:.0%} | {ours_1:.3f} | {released_1:.3f} | {evict_1:.3f} \
| {released_evict_1:.3f} |
| {pruned_2:.0%} | {overlap_2:.0%} | {chance_2:.0%} | {sink_2:.0%} | {ours_2:.3f} | {released_2:.3f} | {evict_2:.3f} \
| {released_evict_2:.3f} |

The rows that the released code keeps are hardly more often true top rows than rows drawn by chance. With folding,
which on this model costs more than dropping, the error hides the choice; with dropping it shows.

- Of the rows that the released code merges, {stays_1:.0%} are rows that stay (pruned by {pruned_1:.0%}).
- Where the budget is a whole number, pruned by {pruned_1:.0%}, it keeps {short_1:.0f} row too few.
- Positions that go on from the compressed length take the output error of our own table from {ours_2:.3f} to
  {compressed_2:.3f} (pruned by {pruned_2:.0%}).
- Pruned by {pruned_2:.0%}, the fixed point is negative for every prompt of up to {negative:.0f} tokens; it is
  {point:.0f} for the demo's prompts of {prompt:.0f} tokens. Where it is `-1`, {before:.0f} rows become {after:.0f}
  in one step.
"""

PRUNED = (0.2, 0.5, 0.8)
DISTANCE = 25


def measure(samples: Samples) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for place, pruned in enumerate(PRUNED):
        parts = [_compare(prompt, pruned) for prompt in samples.texts]
        numbers |= {f"{name}_{place}": mean(part[name] for part in parts) for name in parts[0]}
    keep = 1 - PRUNED[-1]
    numbers["prompt"] = samples.pictures[0].tokens
    numbers["point"] = _fixed_point(samples.pictures[0].tokens, keep)
    numbers["negative"] = max(tokens for tokens in range(1000) if _fixed_point(tokens, keep) < 0)
    rows = list(range(DISTANCE))  # one more than the prompt left: a token was generated
    point = len(rows) - 1 - DISTANCE
    return numbers | {"before": len(rows), "after": len(rows[:point] + rows[point + 1 :])}


def _fixed_point(tokens: int, keep: float) -> int:
    """The released index of the row that goes at every decode step."""
    return tokens - int(tokens - tokens * keep) - DISTANCE


def _compare(prompt: Prompt, pruned: float) -> dict[str, float | Tensor]:
    tokens, keep = prompt.tokens, round(1 - pruned, 6)
    scores = prompt.mass.mean((1, 2))[:, 1:-1]  # of the rows that may leave
    stays = scores.argsort(-1) > int(tokens - tokens * (1 - pruned))
    top = torch.stack([best(line, int(mask.sum())) for line, mask in zip(scores, stays, strict=True)])
    ours, released = prompt.after(kvpolicy.elastic_cache(keep=keep)), _released(prompt, stays)
    return {
        "pruned": pruned,
        "overlap": overlap(stays, top),
        "chance": mean(stays.double()),
        "sink": mean((~stays[:, 0]).double()),
        "stays": mean([mean(stays[n][:-1][~stays[n][1:]].double()) for n in range(len(stays))]),
        "short": round(keep * tokens) - (int(stays[0].sum()) + 2),
        "ours": mean(prompt.error(ours)),
        "released": mean(prompt.error(released)),
        "evict": mean(prompt.error(prompt.evicted(ours.kept))),
        "compressed": mean(prompt.error(ours, shift=round(keep * tokens) - tokens)),
        "released_evict": mean(prompt.error(prompt.evicted(released.kept))),
    }


def _released(prompt: Prompt, stays: Tensor) -> Table:
    """Merged as the released code does: the source of each fold is one row too early."""
    keys, values, kept = prompt.keys.clone(), prompt.values.clone(), torch.ones(stays.shape[0], prompt.tokens) > 0
    kept[:, 1:-1] = stays
    for layer, mask in enumerate(stays):
        anchors, sources = torch.where(mask)[0] + 1, torch.where(~mask)[0]
        into = anchors[(anchors - sources[:, None]).abs().argmin(-1)]
        for data in (keys[layer], values[layer]):
            whole = data.clone()
            data.index_add_(1, into, whole[:, sources])
            data.div_(1 + torch.bincount(into, minlength=prompt.tokens)[:, None])
    return Table(keys, values, kept[:, None].expand(keys.shape[:3]))
