"""The model under evaluation: prompts go in as tensors, answers come out as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import GenerationConfig

from ..loading.inputs import inputs_of
from .errors import EvaluationError

__all__ = ["Part", "Subject"]

Part: TypeAlias = str | Image | tuple[int, ...]
"""What a prompt is made of: texts and pictures, or token ids alone."""


@dataclass(frozen=True, eq=False, repr=False)
class Subject:
    """A model and its processor, or its tokenizer if it takes text alone.

    Attributes:
        model: after `kvpolicy_hf.enable`.
        processor: as `load_model` gives it.
        name: what tables call it.
    """

    model: Any
    processor: Any
    name: str = "model"

    def __repr__(self) -> str:
        return f"Subject({self.name!r})"

    @property
    def takes_pictures(self) -> bool:
        """Whether prompts may hold pictures."""
        return hasattr(self.processor, "image_processor")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer alone."""
        return self.processor.tokenizer if self.takes_pictures else self.processor

    @property
    def eos(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return tuple(ids) if isinstance(ids, (list, tuple)) else () if ids is None else (ids,)

    @property
    def pad(self) -> int:
        """What fills a batch up; the model does not attend to it."""
        known = self.tokenizer.pad_token_id
        return int(known if known is not None else (self.eos or (0,))[0])

    def greedy(self, new_tokens: int, *, stop: bool = True) -> GenerationConfig:
        """Plain greedy decoding, whatever else the model's own configuration asks for (penalties, sampling).

        Args:
            new_tokens: the longest answer.
            stop: end an answer where the model does.
        """
        return GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=self.pad,
            eos_token_id=list(self.eos) if stop and self.eos else None,
        )

    def encode(self, prompts: Sequence[tuple[Part, ...]]) -> dict[str, Tensor]:
        """The model's inputs for a batch of prompts, padded on the left.

        Texts and pictures go through the chat template; where there is none, they are joined by spaces.

        Raises:
            EvaluationError: if a prompt mixes token ids with other parts, or holds a picture that the model cannot see.
        """
        given = [isinstance(part, tuple) for parts in prompts for part in parts]
        if any(given):
            if not all(given) or any(len(parts) != 1 for parts in prompts):
                raise EvaluationError("a prompt of token ids is one tuple of them, and so is every other of its task.")
            return self._padded([parts[0] for parts in prompts])
        if not self.takes_pictures and not all(isinstance(part, str) for parts in prompts for part in parts):
            raise EvaluationError(f"{self.name} takes text alone, and a prompt holds a picture.")
        return inputs_of(self.processor, prompts, self.model.device)  # type: ignore[arg-type]  # no ids among them

    def tokens(self, answer: str | tuple[int, ...]) -> list[int]:
        """The token ids of an answer, without any that begin or end a text."""
        if isinstance(answer, str):
            return list(self.tokenizer(answer, add_special_tokens=False).input_ids)
        return list(answer)

    def text(self, tokens: Sequence[int]) -> str:
        """What token ids say, trimmed."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights: results of two models are never mixed, even if one took the other's place in a folder."""
        sums = [float(weight.detach().double().sum()) for weight in self.model.parameters()]
        squares = [float(weight.detach().double().square().sum()) for weight in self.model.parameters()]
        return f"{len(sums)} tensors, {sum(sums):.6g}, {sum(squares):.6g}"

    def _padded(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[self.pad] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
