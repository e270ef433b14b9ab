"""Measure every method and store the numbers."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterable
from datetime import date
from typing import Any

import torch
import transformers
from rich.console import Console

from .methods import METHODS
from .page import NUMBERS, stored
from .prompts import Samples

DIGITS = 6


def measure(only: Iterable[str], console: Console) -> None:
    """Measure these methods, all if none is named, and write `NUMBERS`; what is not measured stays as it is."""
    torch.set_num_threads(1)  # layer by layer the work is small: more threads only wait for each other
    known: dict[str, Any] = stored()["numbers"] if NUMBERS.is_file() else {}
    with console.status("recording prompts"):
        samples = Samples.load()
    chosen = tuple(only) or tuple(METHODS)
    numbers: dict[str, dict[str, float]] = {}
    for name, method in METHODS.items():
        if name not in chosen:
            numbers[name] = known.get(name, {})
            continue
        start = time.perf_counter()
        with console.status(name):
            found = method.measure(samples) if hasattr(method, "measure") else {}
        numbers[name] = {what: _rounded(number) for what, number in found.items()}
        console.print(f"{name:<20} {time.perf_counter() - start:6.1f} s")
    page = {"about": about(), "samples": _describe(samples), "numbers": numbers}
    NUMBERS.write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")


def about() -> str:
    """Where the numbers come from."""
    return (
        f"float32 models, measured in float64; {platform.processor() or platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{date.today()}. Made by `python -m scripts.fidelity`."
    )


def _describe(samples: Samples) -> dict[str, float]:
    text, picture = samples.texts[0], samples.pictures[0]
    return {
        "texts": len(samples.texts),
        "text_tokens": text.tokens,
        "text_steps": text.record.steps,
        "text_layers": text.layers,
        "text_heads": text.heads[0],
        "text_groups": text.heads[1],
        "pictures": len(samples.pictures),
        "picture_tokens": picture.tokens,
        "picture_layers": picture.layers,
    }


def _rounded(number: float) -> float:
    """To so many digits that a page can show, and few enough that the file can be read."""
    number = float(number)
    if number == 0 or not math.isfinite(number):
        return number
    return round(number, DIGITS - 1 - math.floor(math.log10(abs(number))))
