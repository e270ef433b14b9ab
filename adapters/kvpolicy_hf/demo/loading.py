"""Load a vision-language model and its processor from a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from kvpolicy import KVPolicyError, UnsupportedModelError

__all__ = ["LoadingError", "load"]


class LoadingError(KVPolicyError):
    """There is no model where one was looked for, or its files cannot be read."""


def load(where: str | Path) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its processor.

    On a GPU the weights keep the dtype that they were saved in; on a CPU they run in float32.

    Args:
        where: a folder that `save_pretrained` wrote, or a hub id such as ``llava-hf/llava-1.5-7b-hf``.

    Raises:
        LoadingError: nothing can be read there.
        UnsupportedModelError: it is a model, but not one that takes images and text.
    """
    path = Path(where).expanduser()
    if _means_a_path(str(where)) and not path.is_dir():
        raise LoadingError(f"no folder {str(where)!r}. Hint: give a folder with config.json, or a hub id.")
    name = str(path) if path.is_dir() else str(where)
    try:
        config: Any = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise LoadingError(f"no model at {name!r}: {_first_line(error)}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UnsupportedModelError(
            f"{name!r} is a {config.model_type} model; the demo needs one that takes images and text (LLaVA, Qwen-VL)."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoProcessor.from_pretrained(name)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name, dtype="auto" if device == "cuda" else torch.float32
        )
    except (OSError, ValueError, ImportError) as error:
        raise LoadingError(f"{name!r} cannot be loaded: {_first_line(error)}") from error
    return model.to(device).eval(), processor


def _means_a_path(where: str) -> bool:
    """Hub ids have at most one slash and never begin with one, nor with ``.`` or ``~``."""
    return where.startswith(("/", ".", "~")) or where.count("/") > 1 or "\\" in where


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
