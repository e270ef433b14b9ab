"""Load a model and its processor or tokenizer: from a folder, a hub id, or a package that carries it.

model, processor = load_model("llava-hf/llava-1.5-7b-hf")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from kvpolicy import UnsupportedModelError

from ..demo.scenes import ASSETS
from .bench import load_bench
from .errors import LoadingError
from .smollm2 import load_smollm2

__all__ = ["BUNDLED", "LoadingError", "load_bench", "load_model", "load_smollm2"]

# Of a model's folder; unless it is told so, transformers asks at the terminal, in the middle of a progress bar.
NO_CODE: Mapping[str, Any] = {"trust_remote_code": False}

BUNDLED: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "demo": lambda: load_model(ASSETS),
    "bench": load_bench,
    "smollm2": load_smollm2,
}


def load_model(where: str | Path, *, pictures: bool = False) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its processor; of a language model, its tokenizer.

    On a GPU the weights keep the dtype that they were saved in; on a CPU they run in float32. Code that lies beside the
    weights is not run.

    Args:
        where: a folder that `save_pretrained` wrote, a hub id such as ``llava-hf/llava-1.5-7b-hf``, or a name of
            `BUNDLED`: ``"demo"``, which comes with this package, ``"bench"``, or ``"smollm2"``.
        pictures: refuse a model that takes text alone.

    Raises:
        LoadingError: nothing can be read there.
        UnsupportedModelError: it takes text alone, and pictures were asked for.
    """
    if where in BUNDLED:
        carried = BUNDLED[str(where)]()
        if pictures and not hasattr(carried[1], "image_processor"):
            raise UnsupportedModelError(f"{where!r} takes no pictures. Hint: 'demo', LLaVA, or Qwen-VL.")
        return carried
    path = Path(where).expanduser()
    name = str(path) if path.is_dir() else str(where)
    if not path.is_dir():
        _refuse_slips(name)
    try:
        config: Any = AutoConfig.from_pretrained(name, **NO_CODE)
    except (OSError, ValueError) as error:
        raise LoadingError(f"no model at {name!r}: {_first_line(error)}") from error
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if pictures and not sees:
        raise UnsupportedModelError(
            f"{name!r} is a {config.model_type} model, which takes no pictures. Hint: LLaVA, or Qwen-VL."
        )
    kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor: Any = (AutoProcessor if sees else AutoTokenizer).from_pretrained(name, **NO_CODE)
        model: Any = kind.from_pretrained(name, dtype="auto" if device == "cuda" else torch.float32, **NO_CODE)
    except (OSError, ValueError, ImportError) as error:
        raise LoadingError(f"{name!r} cannot be loaded: {_first_line(error)}") from error
    return model.to(device).eval(), processor


def _refuse_slips(name: str) -> None:
    """Before the hub is asked, which takes long, and is asked several times where it cannot be reached."""
    if _means_a_path(name):
        raise LoadingError(f"no folder {name!r}. Hint: give a folder with config.json, or a hub id.")
    if "/" not in name and (near := get_close_matches(name.lower(), BUNDLED, n=1)):
        raise LoadingError(f"no bundled model {name!r}. Hint: {near[0]}.")


def _means_a_path(where: str) -> bool:
    """Hub ids have at most one slash and never begin with one, nor with ``.`` or ``~``."""
    return where.startswith(("/", ".", "~")) or where.count("/") > 1 or "\\" in where


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
