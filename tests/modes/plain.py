"""The same policy run plainly: a row alone, its prompt in one pass, its tokens one by one, in a cache of their own.

Nothing is batched, padded, reordered, shared, copied, chunked, guessed or taken back, so there is nothing that a
generation mode could get wrong.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from models import Inputs
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from kvpolicy import Policy
from kvpolicy_hf import PolicyCache

__all__ = ["Plain"]

History = tuple[tuple[int, ...], ...]  # the turns, each a pass; a decoded token is one of its own


class Plain:
    """One model under one policy. What was asked once is remembered; every history has a cache of its own."""

    def __init__(self, model: PreTrainedModel, policy: Policy) -> None:
        self.model, self.policy = model, policy
        self._logits: dict[History, Tensor] = {}
        self._caches: dict[History, PolicyCache] = {}  # of histories that nothing has been fed behind yet

    def logits(self, history: History) -> Tensor:
        """[V], after the last token."""
        if history not in self._logits:
            cache = self._caches.pop(history[:-1], None)
            passes = history[-1:] if cache is not None else history
            cache = cache or PolicyCache(self.model, self.policy)
            for tokens in passes:
                logits = self.model(input_ids=torch.tensor([tokens]), past_key_values=cache).logits
            self._logits[history], self._caches[history] = logits[0, -1], cache
        return self._logits[history]

    def greedy(self, history: History, count: int, first: int) -> list[int]:
        """The ``count`` tokens that follow, each the best of those from number ``first`` on."""
        tokens: list[int] = []
        for _ in range(count):
            best = int(self.logits(history)[first:].argmax()) + first
            tokens, history = [*tokens, best], (*history, (best,))
        return tokens

    def generator(self, inputs: Inputs) -> Any:
        """A model for transformers' own `generate` without a cache, whose every pass runs every row plainly.

        So a mode is held to what it does, whatever that is; only where the logits come from differs.
        """
        prompt = inputs["input_ids"].shape[1]

        def one(ids: Tensor, first: int) -> Tensor:
            return self.logits((tuple(ids[:first].tolist()), *((token,) for token in ids[first:].tolist())))

        def forward(input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> CausalLMOutputWithPast:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            firsts = mask[:, :prompt].sum(1).tolist()
            rows = [one(ids[seen.bool()], first) for ids, seen, first in zip(input_ids, mask, firsts, strict=True)]
            return CausalLMOutputWithPast(logits=torch.stack(rows)[:, None])

        made: Any = copy.copy(self.model)
        made.forward = forward
        return made
