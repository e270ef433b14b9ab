"""A training run: its options, its state, and the file that both are kept in."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from kvpolicy_bench import world
from kvpolicy_bench.world import World
from transformers import LlavaForConditionalGeneration

from . import model as sizes
from . import plan
from .batches import Recipe

__all__ = ["Options", "Run"]


@dataclass(frozen=True)
class Options:
    """What a run follows from; it never changes once the run has begun.

    Attributes:
        size: ``full`` or ``tiny``.
        steps: how many steps the run has; the learning rate falls to zero over them.
        seed: of the weights and of the batches.
        rate: the highest learning rate.
        warm_up: steps until it is reached.
        easy: the share of the steps in which grids may be filled in part, and code books short.
    """

    size: str
    steps: int
    seed: int
    rate: float
    warm_up: int
    easy: float

    @property
    def world(self) -> World:
        """The world that this size lives in."""
        return {"full": world.FULL, "tiny": world.TINY}[self.size]

    @property
    def recipe(self) -> Recipe:
        """What the batches follow from."""
        mix = {"full": plan.FULL, "tiny": plan.TINY}[self.size]
        return Recipe(self.world, mix, self.seed, int(self.easy * self.steps))

    def rate_at(self, step: int, restarted: int = 0) -> float:
        """The learning rate of a step: up over the warm-up, then down to zero in a straight line.

        An optimizer that was lost, and begins anew at step ``restarted``, is warmed up again.
        """
        return self.rate * min(1.0, (step - restarted + 1) / self.warm_up) * max(0.0, 1.0 - step / self.steps)


class Run:
    """The model, its optimizer, and how far they are."""

    def __init__(self, options: Options, device: torch.device) -> None:
        torch.manual_seed(options.seed)
        self.options, self.device = options, device
        size = {"full": sizes.FULL, "tiny": sizes.TINY}[options.size]
        self.model: LlavaForConditionalGeneration = sizes.make_model(options.world, size).to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=options.rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=device.type == "cuda",
        )
        self.step = self.restarted = 0
        self.seconds = 0.0  # of training, over all processes

    def save(self, path: Path) -> None:
        """Write everything that the rest of the run follows from; a kill at any moment leaves a whole file."""
        state: dict[str, Any] = {
            "options": asdict(self.options),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "restarted": self.restarted,
            "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(),  # the batches have none: they follow from seed and step
            "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Run:
        """Go on where `save` left off."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        run = cls(Options(**state["options"]), device)
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.restarted, run.seconds = state["step"], state["restarted"], state["seconds"]
        torch.set_rng_state(state["torch_rng"])
        if device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        return run
