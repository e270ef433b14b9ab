"""Whether a model's attention hears of ``use_cache`` what the caller said."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["hears_use_cache"]


def hears_use_cache(model: PreTrainedModel) -> bool:
    """Whether what attention modules hear of ``use_cache`` is what the caller said.

    In some decoders the layers have that argument, False by default, and are told nothing. Only the source shows it;
    without it the answer is no.
    """
    return all(
        _tells_use_cache(type(part).forward)
        for part in model.modules()
        if any(_is_stack(child) for child in part.children())
    )


@functools.cache
def _tells_use_cache(decode: Callable[..., Any]) -> bool:
    try:
        return "use_cache=use_cache" in inspect.getsource(decode)
    except OSError:
        return False


def _is_stack(module: torch.nn.Module) -> bool:
    """Whether it is a list of decoder layers."""
    return isinstance(module, torch.nn.ModuleList) and any(hasattr(part, "layer_idx") for part in module.modules())
