"""One forward pass of a model, described for all its layers; in parts where tokens of it may be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kvpolicy import Pass, PolicyError

from ._transformers.masks import sight
from .prompt import Prompt

__all__ = ["bounds_with_guesses", "described"]


def described(
    start: int, keys: Tensor, padding: Tensor | None, prompt: Prompt, bounds: Sequence[int]
) -> tuple[Pass, ...]:
    """The parts of a pass that begins with token ``start``.

    Args:
        start: tokens that have passed before.
        keys: of its tokens, [B, H, Q, D].
        padding: a `policy_mask` of all tokens so far; None: none is padding.
        prompt: what is known of the tokens.
        bounds: where the parts begin, counted from ``start``, and then the length of all.

    Raises:
        PolicyError: if the mask does not cover all tokens, or the prompt is of another batch.
    """
    batch, length, device = int(keys.shape[0]), int(keys.shape[2]), keys.device
    valid, reach = sight(padding, start, length, batch, device)
    tokens = valid.cpu().numpy()
    # transformers fills up a mask that is too short with padding, behind the tokens that it knows of.
    if tokens.shape != (batch, length) or (start and bool((tokens[:, :-1] & ~tokens[:, 1:]).any())):
        raise PolicyError(
            f"attention_mask must cover all {start + length} tokens seen so far for {batch} batch rows, padding on "
            f"the left. Hint: after the first pass feed new tokens only, which use_cache=False does not do."
        )
    positions = torch.arange(start, start + length, device=device).expand(batch, length)
    columns = prompt.columns(start, length, batch, device)
    return tuple(
        Pass(
            start + first,
            positions[:, first:last],
            valid[:, first:last],
            tokens[:, first:last].sum(-1),
            {name: column[:, first:last] for name, column in columns.items()},
            None if reach is None else reach[:, first:last],
            tentative=first > 0,
        )
        for first, last in pairwise(bounds)
    )


def bounds_with_guesses(start: int, length: int, prompt_length: int, *, singly: bool) -> list[int]:
    """Where the parts of a pass begin whose last tokens may be taken back, and its length.

    First comes what stays: what is left of the prompt, or of a later pass the first token. The others are guesses.

    Args:
        start: tokens that have passed before.
        length: tokens of the pass.
        prompt_length: tokens of the prompt.
        singly: whether each guess is a part of its own.
    """
    settled = min(max(prompt_length - start, 1), length)
    return [0, settled, *(range(settled + 1, length + 1) if singly else {length} - {settled})]
