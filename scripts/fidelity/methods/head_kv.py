from __future__ import annotations

import torch

import kvpolicy

from ..prompts import Prompt, Samples, gathered, mean
from .snapkv import KEEP, WINDOW, plain

RELEASED = """
Its tables are retrieval scores of two models, measured once with needles in haystacks; a head gets a fixed part of
the budget and a share of a pool in proportion to its score, rounded by itself.
"""
CHOSEN = """
The table is an argument, `[layer][key/value head]`, and rows are in proportion to it, in integers with the exact
total. A fixed part for every head is a constant added to the table. No table comes with the package.
"""
MEASURED = """
SmolLM2 has no published table. With the attention that the last {window:.0f} queries of the prompt pay beyond these
{window:.0f} tokens as the table, at `keep={keep:g}`: rows of a head from {least:.0f} to {most:.0f}, {rows:,.0f} in
all, as many as SnapKV keeps; output error {ours:.3f}, SnapKV {uniform:.3f}. Rounding each head by itself gives
{off:+.0f} rows.
"""


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts])


def _measure(prompt: Prompt) -> dict[str, float]:
    table = prompt.window(WINDOW)[..., :-WINDOW].sum(-1).mean(2)  # [L, H]
    ours = prompt.after(kvpolicy.head_kv(keep=KEEP, table=table.tolist()))
    uniform = plain(prompt)
    total = round(KEEP * prompt.tokens) * table.numel()
    assert int(ours.rows.sum()) == int(uniform.rows.sum()) == total
    return {
        "keep": KEEP,
        "window": WINDOW,
        "least": float(ours.rows.min()),
        "most": float(ours.rows.max()),
        "rows": total,
        "ours": mean(prompt.error(ours)),
        "uniform": mean(prompt.error(uniform)),
        "off": float(torch.round(table / table.sum() * total).sum()) - total,
    }
