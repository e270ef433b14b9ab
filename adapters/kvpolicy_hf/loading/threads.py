"""How many threads torch takes for a model."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["fit_threads"]

SMALL = 50_000_000  # parameters


def fit_threads(model: Any) -> None:
    """One thread for a small model: more only wait for each other, very long if the machine is busy."""
    if model.num_parameters() < SMALL:
        torch.set_num_threads(1)
