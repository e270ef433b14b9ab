from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch.nn.functional as F
from torch import Tensor

import kvpolicy

from ..prompts import Prompt, Samples, Table, best, gathered, mean, overlap

RELEASED = """
Its pooling pads the scores with zeros and counts them, so that the scores of the first rows, and of the last ones
before the window, are too small. It ranks rows for each query head, and stores keys and values for each of them,
also where several share a key/value head. Its defaults are a kernel of 5 and average pooling; the authors'
LongBench runs use 7 and max pooling.
"""
CHOSEN = """
Pooling counts the rows that are there. The query heads of a group agree on one set of rows, by the mean of their
scores before pooling, and each row is stored once. Kernel 7; `pooling` is an argument.
"""
MEASURED = """
At `keep={keep:g}`, window {window:.0f}, kernel {kernel:.0f}. Counting the padding decides at least one row
otherwise in {padded_heads:.1%} of the heads, and {padded_rows:.2%} of the rows that compete. Sets for each query
head: {groups:.0f} times the rows to store, of which {distinct:.2f} times are distinct; a set that the group agrees
on holds {agree:.0%} of the rows that one query head would choose. Max pooling keeps {pooled:.0%} of the rows that
mean pooling keeps; output error {mean_error:.3f} with mean, {max_error:.3f} with max.
"""

KEEP, WINDOW, KERNEL = 0.2, 32, 7


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts])


@cache
def plain(prompt: Prompt) -> Table:
    """What the recipe leaves, for other methods to compare with."""
    return replace(prompt.after(kvpolicy.snapkv(keep=KEEP)), plans=())


def pool(scores: Tensor, *, padded: bool) -> Tensor:
    flat = scores.flatten(0, -2)[:, None]
    out = F.avg_pool1d(flat, KERNEL, stride=1, padding=KERNEL // 2, count_include_pad=padded)
    return out.reshape(scores.shape)


def _measure(prompt: Prompt) -> dict[str, float]:
    scores = prompt.window(WINDOW)[..., :-WINDOW]  # [L, H, G, T - window]
    count = round(KEEP * prompt.tokens) - WINDOW
    of_group = best(pool(scores.mean(2), padded=False), count)
    ours, by_max = plain(prompt), prompt.after(kvpolicy.snapkv(keep=KEEP, pooling="max"))
    assert mean((ours.kept[..., :-WINDOW] == of_group).double()) > 0.999, "this is not what the recipe does"
    padded = best(pool(scores.mean(2), padded=True), count)
    of_each = best(pool(scores, padded=False), count)
    return {
        "keep": KEEP,
        "window": WINDOW,
        "kernel": KERNEL,
        "padded_heads": mean((padded != of_group).any(-1).double()),
        "padded_rows": mean((padded != of_group).double()),
        "groups": prompt.heads[1],
        "distinct": mean((of_each.any(2).sum(-1) + WINDOW) / (count + WINDOW)),
        "agree": overlap(of_group[:, :, None], of_each),
        "pooled": overlap(by_max.kept[..., :-WINDOW], ours.kept[..., :-WINDOW]),
        "mean_error": mean(prompt.error(ours)),
        "max_error": mean(prompt.error(by_max)),
    }
