"""What a cache is told of a prompt before it comes: how long it is, and which of its tokens are no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kvpolicy import PolicyError

from ._transformers import PreTrainedModel
from .segments import prompt_ids
from .segments import segments as segments_of

__all__ = ["Prompt", "prompt_of"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """All the tokens up to the end of a prompt.

    Attributes:
        length: how many they are, padding included; 0: that is not known.
        segments: integers [B, T], what each of them stands for; None: nobody said.
    """

    length: int
    segments: Tensor | None

    def columns(self, start: int, length: int, batch: int, device: torch.device) -> dict[str, Tensor]:
        """The columns of so many tokens from ``start`` on, [batch, length], for a table."""
        if self.segments is None:
            return {}
        known = _rows(self.segments, batch)[:, start : start + length].to(device)
        return {"segment": torch.nn.functional.pad(known, (0, length - known.shape[1]))}  # later tokens are text

    def selected(self, index: Tensor, batch: int) -> Prompt:
        """The prompt of these rows, int64 [N], of ``batch`` rows; of 0 rows none has come, and it is as it was."""
        if self.segments is None or not batch:
            return self
        rows = _rows(self.segments, batch)
        return replace(self, segments=rows.index_select(0, index.to(rows.device)))


def prompt_of(model: PreTrainedModel, inputs: Mapping[str, Any] | None, segments: Tensor | None) -> Prompt:
    """The prompt that these inputs of `generate` hold, with segments of the user's own or those derived from them.

    Raises:
        PolicyError: if an argument is wrong.
    """
    if not isinstance(inputs, Mapping | None):
        raise PolicyError(
            f"inputs=... is what goes into generate, a mapping; got a {type(inputs).__name__}. "
            f"Hint: inputs=inputs, not inputs['input_ids']."
        )
    length = 0 if inputs is None else int(prompt_ids(inputs, model).shape[1])
    if inputs is not None and segments is None:
        segments = segments_of(inputs, model)
    if segments is not None and (segments.ndim != 2 or segments.is_floating_point()):
        raise PolicyError(
            f"segments=... has shape {list(segments.shape)} and dtype {segments.dtype}; it takes integers, "
            f"[batch, tokens]."
        )
    return Prompt(length, segments)


def _rows(segments: Tensor, batch: int) -> Tensor:
    """Segments for each batch row; `generate` repeats rows for beams and return sequences."""
    if segments.shape[0] == batch:
        return segments
    if batch % segments.shape[0]:
        raise PolicyError(
            f"inputs or segments have {segments.shape[0]} batch rows, but the model runs {batch}. "
            f"Hint: pass the same inputs to PolicyCache and to generate."
        )
    return segments.repeat_interleave(batch // segments.shape[0], dim=0)
