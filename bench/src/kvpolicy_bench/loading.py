"""Load the bench model and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from .world import FULL, TINY, World

__all__ = ["MODEL", "load", "world_of"]

MODEL = Path(__file__).parent / "model"  # what comes with the package


def load(where: str | Path = MODEL, device: str | torch.device | None = None) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its processor.

    Args:
        where: a folder that `save_pretrained` wrote.
        device: where to run; a GPU if there is one. There the weights keep their half precision, on a CPU they run in
            float32.

    Raises:
        FileNotFoundError: there is no model in that folder.
    """
    folder = Path(where)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {str(folder)!r}. Hint: bench/README.md says how to train one.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model: Any = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32 if place.type == "cpu" else torch.float16
    )
    processor: Any = AutoProcessor
    return model.to(place).eval(), processor.from_pretrained(folder)


def world_of(model: Any) -> World:
    """The world that a model was trained in."""
    side = model.config.vision_config.image_size
    return next(world for world in (FULL, TINY) if world.side == side)
