from __future__ import annotations

import torch
from torch import Tensor

import kvpolicy

from ..prompts import Prompt, Samples, best, gathered, overlap
from .k_norm import KEEP, foresight
from .snapkv import plain

RELEASED = """
In the authors' kvpress the statistics are those of all queries of the prompt but the first four, and the softmax
leaves the four sinks out.
"""
CHOSEN = """
The statistics of the last `window` queries, so that a prompt in chunks has only these to remember, and a softmax
over all rows. The sinks stay in both. The small constant beside the share is 0 in both.
"""
MEASURED = """
At `keep={keep:g}`, against what the next {steps:.0f} queries attend to in truth.

| | rows with the most attention | attention on the prompt | output error |
|---|---|---|---|
| ours | {found:.0%} | {mass:.1%} | {error:.3f} |
| released | {released_found:.0%} | {released_mass:.1%} | {released_error:.3f} |
| `snapkv` | {snapkv_found:.0%} | {snapkv_mass:.1%} | {snapkv_error:.3f} |
| by chance | {chance:.0%} | | |

Ours and the released choice have {same:.0%} of their rows in common.
"""

SINKS, FUTURE = 4, 512


def measure(samples: Samples) -> dict[str, float]:
    return gathered([_measure(prompt) for prompt in samples.texts])


def _measure(prompt: Prompt) -> dict[str, float]:
    ours = prompt.after(kvpolicy.expected_attention(keep=KEEP))
    released = prompt.evicted(best(_released(prompt), round(KEEP * prompt.tokens)))
    numbers = foresight(prompt, ours) | {"same": overlap(released.kept, ours.kept)}
    for name, table in (("released", released), ("snapkv", plain(prompt))):
        numbers |= {f"{name}_{what}": number for what, number in foresight(prompt, table).items()}
    return numbers


def _released(prompt: Prompt) -> Tensor:
    """Scores [L, H, T] from all queries after the sinks; the sinks come first."""
    places = torch.arange(SINKS, prompt.tokens)
    asked = prompt.turn(prompt.all_queries[:, :, :, SINKS : prompt.tokens], -places)
    average, size = asked.mean(3), asked.shape[-1]
    off = asked - average[:, :, :, None]
    spread = off.mT @ off / len(places)
    ahead = torch.arange(prompt.tokens, prompt.tokens + FUTURE)
    turn = prompt.turn(torch.eye(size).double()[:, None].expand(-1, FUTURE, -1), ahead).mean(1)  # rows: turned units
    average, spread = average @ turn, turn.mT @ spread @ turn
    keys = prompt.keys[:, :, SINKS:]
    logits = prompt.scale * average @ keys.mT
    logits += prompt.scale**2 / 2 * torch.einsum("lhnd,lhgde,lhne->lhgn", keys, spread, keys)
    share = torch.softmax(logits, -1).mean(2) * torch.linalg.vector_norm(prompt.values[:, :, SINKS:], dim=-1)
    first = share.new_full((*share.shape[:2], SINKS), torch.inf)
    return torch.cat([first, share], -1)
